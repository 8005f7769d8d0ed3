"""The folder of a run: the results of its stages, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kdx.datasets.view import View
from kdx.errors import StopRun
from kdx.experiment.recipe import Recipe
from kdx.experiment.run_files import (
    METRICS,
    MODEL,
    RESULT,
    START,
    STOPPED,
    again,
    check_files,
    checksums,
    entry_of,
    read_model,
    read_result,
    read_stopped,
    weights_of,
)
from kdx.experiment.stage_store import stored_teacher
from kdx.files import named, write_json
from kdx.ref import Ref
from kdx.stage import Produced
from kdx.stage_name import split_name
from kdx.tasks.base import Task
from kdx.teachers import Stored
from kdx.training.checkpoint import load_tensors, save_tensors

__all__ = ["RunFolder"]


class RunFolder:
    """The models, results and stores of finished stages: a :class:`kdx.experiment.model_source.ModelSource`.

    Args:
        recipe: what is run.
        folder: where.
        metric: of the task, the one that says how good a model is.
        notify: called with a sentence for the user when something happens.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, metric: str, notify: Callable[[str], object] = lambda _: None
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.metric = metric
        self.notify = notify

    def of(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.folder / stage

    def begin(self, stage: str) -> None:
        """Makes the folder of a stage, if it is not there.

        Raises:
            FileError: the folder of the run is gone, or may not be written to.
        """
        with named(self.of(stage), "made"):
            self.of(stage).mkdir(exist_ok=True)

    def finished(self, stage: str) -> bool:
        """True for a stage that has its result."""
        return (self.of(stage) / RESULT).exists()

    def finish(self, stage: str, result: Mapping[str, Any], further: Iterable[Path] = ()) -> dict[str, Any]:
        """Writes the result of a stage with the checksums of its files, which makes it finished; returns it.

        Args:
            stage: that ends.
            result: of it.
            further: files of it beside its metrics and weights.
        """
        folder = self.of(stage)
        files = checksums(folder, folder / METRICS, *sorted({*folder.glob("*.safetensors"), *further}))
        write_json(folder / RESULT, whole := {**result, "files": files})
        return whole

    def stop(self, stage: str, stop: StopRun) -> None:
        """Marks a stage as stopped by an observer, which it stays as long as the mark is there."""
        write_json(self.of(stage) / STOPPED, {"reason": stop.reason, "step": stop.step, "epoch": stop.epoch})

    def check_not_stopped(self, stage: str) -> None:
        """Checks that no observer has stopped a stage.

        Raises:
            StopRun: one has; it says why.
        """
        if kept := read_stopped(self.of(stage)):
            stop = StopRun(kept["reason"])
            stop.step, stop.epoch = kept["step"], kept["epoch"]
            raise stop

    def result(self, stage: str) -> dict[str, Any]:
        """The result of a finished stage.

        Raises:
            DamagedError: it is not as it was written.
        """
        return read_result(self.of(stage))

    def checked(self, stage: str) -> dict[str, Any]:
        """The result of a finished stage, whose files are compared with their checksums.

        Raises:
            DamagedError: it, or one of those files, is not as it was written.
        """
        result = self.result(stage)
        check_files(self.of(stage), result["files"], again(self.of(stage)))
        return result

    def quality(self, stage: str) -> float:
        """The metric of the task on the validation rows; of ``stage:model`` that of the model."""
        return float(entry_of(self.result(split_name(stage)[0]), stage)["validation"][self.metric])

    def weights(self, stage: str) -> Path:
        """The trained weights of a finished stage, or of ``stage:model``.

        Raises:
            CheckpointError: the result names a file outside of the folder of the run.
        """
        return weights_of(self.folder, self.result(split_name(stage)[0]), stage)

    def produced(self, stage: str) -> Produced | None:
        """The model that a stage's structure was made into, None before that."""
        if not (self.of(stage) / MODEL).exists():
            return None
        kept = read_model(self.of(stage))
        start = load_tensors(self.of(stage) / START, sealed=True) if kept["start"] else None
        return Produced(Ref.of(kept["model"]), start)

    def keep(self, stage: str, produced: Produced) -> None:
        """Records the model that a stage's structure was made into."""
        self.begin(stage)
        if produced.weights is not None:
            save_tensors(produced.weights, self.of(stage) / START)
        write_json(
            self.of(stage) / MODEL, {"model": produced.model.as_dict(), "start": produced.weights is not None}
        )  # last, as it says that the weights are there

    def stored(self, teacher: str, rows: View, model: nn.Module, task: Task) -> Stored:
        """A teacher that answers from its store, which is written first if it is not there."""
        return stored_teacher(self.recipe, rows, model, teacher, self.of(split_name(teacher)[0]), task, self.notify)
