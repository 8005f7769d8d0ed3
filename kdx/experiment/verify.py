"""Checks a run: whether all that it wrote and would read again is still what was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import yaml

from kdx.errors import KdxError
from kdx.experiment.run_files import (
    ENVIRONMENT,
    METRICS,
    RECIPE,
    RESULT,
    STOPPED,
    SUMMARY,
    again,
    check_files,
    read_environment,
    read_model,
    read_recipe,
    read_result,
    read_stopped,
    read_summary,
)
from kdx.files import check_name
from kdx.seal import check_tensors
from kdx.store.manifest import MANIFEST, verify_store

__all__ = ["Verified", "verify_run"]


@dataclass(slots=True)
class Verified:
    """The files of a run that were checked, and what is wrong with them.

    Args:
        folder: of the run.
        finished: whether the run has its summary.
        files: the files that were checked, relative to the folder, in the order in which they were.
        damaged: a sentence for each that is not as it was written; it names the file and says what to do.
    """

    folder: Path
    finished: bool
    files: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def check(self, path: Path, read: Callable[..., object], *arguments: object) -> bool:
        """Counts a file and keeps what is said against it."""
        self.files.append(str(path.relative_to(self.folder) if path.is_relative_to(self.folder) else path))
        try:
            read(*arguments)
        except KdxError as error:
            self.damaged.append(str(error))
            return False
        return True


def verify_run(folder: str | Path) -> Verified:
    """Reads every file of a run that carries a checksum, its stores too, and changes nothing; torch is not needed.

    Not checked are the events of TensorBoard, which kdx never reads, and in the stages of a run that is not finished
    the numbers in ``metrics.jsonl``: their checksum is taken when the stage ends.

    Args:
        folder: of the run, finished or not.

    Raises:
        KdxError: the folder holds no run.
    """
    folder = Path(folder)
    if not any((folder / name).exists() for name in (RECIPE, SUMMARY)):
        raise KdxError(f"{folder} holds no run: there is neither {RECIPE} nor {SUMMARY}; give the folder of a run")
    found = Verified(folder, (folder / SUMMARY).exists())
    stores = set()
    if found.check(folder / RECIPE, read_recipe, folder):
        stores = set(_stores(yaml.safe_load(read_recipe(folder))))
    found.check(folder / ENVIRONMENT, read_environment, folder)
    stages = {path.parent for name in (RESULT, STOPPED, "checkpoints") for path in folder.glob(f"*/{name}")}
    if found.finished and found.check(folder / SUMMARY, read_summary, folder):
        summary = read_summary(folder)
        for name in summary["files"]:
            only = {name: summary["files"][name]}
            found.check(folder / name, check_files, folder, only, f"its numbers are those of {SUMMARY}")
        for name, result in summary["stages"].items():
            stages.discard(folder / name)
            _check_stage(found, folder / name, result)
    for stage in sorted(stages):
        _check_stage(found, stage, None)
    for store in sorted({*stores, *filter(Path.is_dir, folder.glob("*/store*"))}):
        found.check(store, verify_store, store)
    return found


def _check_stage(found: Verified, stage: Path, expected: object) -> None:
    """Checks the files of a stage; ``expected`` is its result as the summary has it."""
    files: dict[str, str] = {}
    if expected is not None or (stage / RESULT).exists():
        if found.check(stage / RESULT, _same, stage, expected):
            files = read_result(stage)["files"]
        for name, digest in files.items():
            found.check(stage / name, check_files, stage, {name: digest}, again(stage))
    elif (stage / METRICS).exists():
        found.check(stage / METRICS, _read_lines, stage / METRICS)
    if (stage / STOPPED).exists():
        found.check(stage / STOPPED, read_stopped, stage)
    if (stage / "model.json").exists():
        found.check(stage / "model.json", read_model, stage)
    for path in sorted(stage.glob("*.safetensors")):
        if path.name not in files:
            found.check(path, partial(check_tensors, sealed=True), path, again(stage))
    for path in sorted(stage.glob("checkpoints/step-*.pt")):
        found.check(path, check_name, path, "remove it, an older one takes its place")


def _same(stage: Path, expected: object) -> None:
    if expected is not None and read_result(stage) != expected:
        raise KdxError(
            f"{stage / RESULT} and the summary of the run differ, so one of them is of another run; remove {SUMMARY} "
            "and resume the run, which makes it anew"
        )
    read_result(stage)


def _read_lines(path: Path) -> None:
    from kdx.observers.metrics_log import read_metrics

    read_metrics(path)


def _stores(recipe: object) -> Iterator[Path]:
    """The folders of the stores that a recipe names itself."""
    if isinstance(recipe, dict):
        for key, value in recipe.items():
            if key == "store" and isinstance(value, dict) and value.get("folder"):
                if Path(value["folder"], MANIFEST).exists():
                    yield Path(value["folder"])
            else:
                yield from _stores(value)
