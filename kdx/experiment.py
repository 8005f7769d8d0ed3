"""``run``: a recipe becomes a folder with trained models, metrics and a report."""

from __future__ import annotations

import functools
import inspect
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader

from kdx import evaluation, registry
from kdx.assistants.base import ModelRef, Stage
from kdx.batch import Batch
from kdx.checkpoint import atomic_write, export_weights, load_weights
from kdx.cost import measure_cost
from kdx.environment import environment
from kdx.errors import RecipeError, RunExistsError
from kdx.experiment_data import ExperimentData
from kdx.loop import fit
from kdx.recipe import Component, Recipe, Train, check_recipe, load_recipe
from kdx.report import write_report
from kdx.run_state import Run
from kdx.schemes.base import Scheme
from kdx.schemes.supervised import Supervised
from kdx.tasks import task_kind
from kdx.teachers import Frozen

__all__ = ["Experiment", "WeakTeacherWarning", "run"]

RECIPE, SUMMARY, ENVIRONMENT, RESULT = "recipe.yaml", "summary.json", "environment.json", "result.json"


class WeakTeacherWarning(UserWarning):
    """The teacher is no better than the student alone, so there is little to distil."""


def run(
    recipe: str | Path | Recipe,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    observers: Sequence[object] = (),
    **overrides: Any,
) -> dict[str, Any]:
    """Runs a recipe: trains or loads the teacher, trains the student alone and distilled, evaluates, reports.

    Args:
        recipe: name of a recipe (``kdx run --list``), path of a YAML file, or a checked recipe.
        folder: where the run is written; ``runs/<recipe name>`` by default.
        resume: go on with the run in the folder, or start it if there is none; a finished run is only read.
        force: move a run that is in the folder aside, to ``<folder>.old-N``.
        observers: see :func:`kdx.fit`; they watch every stage.
        **overrides: recipe keys, as ``seed=1``, ``train={"epochs": 2}`` or ``**{"train.epochs": 2}``.

    Returns:
        The summary, as in ``summary.json``: per stage accuracies, parameters, size, latency, seconds; the gain.

    Raises:
        RecipeError: something in the recipe is wrong; the path to the key is named.
        RunExistsError: the folder holds a run, and neither ``resume`` nor ``force`` was given.
        Interrupted: the run was stopped by a signal; ``resume`` continues it.
    """
    if isinstance(recipe, Recipe):
        name = "recipe"
        checked = check_recipe({**recipe.dump(), **overrides})
    else:
        name = Path(recipe).stem
        checked = load_recipe(recipe, overrides)
    return Experiment(checked, Path(folder or Path("runs") / name), observers, name=name).run(
        resume=resume, force=force
    )


class Experiment:
    """One recipe in one folder.

    Args:
        recipe: what to run.
        folder: where it is written.
        observers: see :func:`kdx.fit`.
        name: what the report calls it; the folder's name by default.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, observers: Sequence[object] = (), *, name: str | None = None
    ) -> None:
        self.recipe = recipe
        self.name = name or folder.name
        self.folder = folder
        self.observers = list(observers)
        self.plugins = registry.default_plugins()
        self.task = task_kind(recipe.task.name, margin=recipe.task.margin)

    @functools.cached_property
    def data(self) -> ExperimentData:
        """The rows, read when they are first needed."""
        return ExperimentData(self.recipe)

    def run(self, *, resume: bool = False, force: bool = False) -> dict[str, Any]:
        """Runs what is left to run and returns the summary."""
        self._claim(resume=resume, force=force)
        if (done := self.folder / SUMMARY).exists():
            return _read_json(done)
        threads = torch.get_num_threads()
        torch.set_num_threads(self.recipe.threads or threads)
        try:
            results = {stage.name: self._stage(stage) for stage in self.stages()}
            summary = self._summary(results)
        finally:
            torch.set_num_threads(threads)
        _write_json(self.folder / SUMMARY, summary)
        write_report(self.folder, summary)
        return summary

    def stages(self) -> list[Stage]:
        """The plan: the teacher if there is one, the controls, the student distilled."""
        recipe = self.recipe
        student = _ref(recipe.student.model)
        stages = []
        if recipe.teacher:
            stages.append(Stage("teacher", "teacher", _ref(recipe.teacher.model)))
        stages += [Stage(name, name, student) for name in recipe.controls]
        stages.append(Stage("distilled", "distilled", student, ("teacher",) if recipe.teacher else ()))
        return stages

    def _claim(self, *, resume: bool, force: bool) -> None:
        """Makes the folder this run's own, and never anyone else's."""
        folder = self.folder
        if (folder / RECIPE).exists():
            if force:
                aside = next(
                    path for n in range(1, 10_000) if not (path := folder.with_name(f"{folder.name}.old-{n}")).exists()
                )
                shutil.move(folder, aside)
            elif not resume:
                raise RunExistsError(
                    f"{folder} holds a run already; --resume goes on with it (a finished one is only read), --force "
                    "moves it aside, --folder takes another place"
                )
            elif changed := _differences(load_recipe(folder / RECIPE).dump(), self.recipe.dump()):
                raise RecipeError(
                    f"the run in {folder} was started with another recipe ({'; '.join(changed)}); resume it with the "
                    "same one, or take another folder"
                )
        elif folder.exists() and any(folder.iterdir()):
            raise RunExistsError(f"{folder} is not empty and holds no run of kdx; take another folder")
        if not (folder / RECIPE).exists():
            _write_json(folder / ENVIRONMENT, environment(self.recipe.seed))
            atomic_write(folder / RECIPE, lambda path: path.write_text(self.recipe.yaml()))

    def _model(self, ref: ModelRef) -> nn.Module:
        model: nn.Module = self.plugins.make("model", ref.name, **ref.options, **self.data.shape)
        return model

    def _stage(self, stage: Stage) -> dict[str, Any]:
        """Runs one stage, or reads its result if it is finished."""
        folder = self.folder / stage.name
        if (folder / RESULT).exists():
            return _read_json(folder / RESULT)
        # one seed for all stages: the student alone and the distilled one start from the same weights
        set_seed(self.recipe.seed)
        scheme, train, loader = self._scheme(stage)
        name, student = next(iter(scheme.students.items()))
        if stage.role == "teacher" and self.recipe.teacher and self.recipe.teacher.weights:
            load_weights(student, self.recipe.teacher.weights)
            result: dict[str, Any] = {"loaded": str(self.recipe.teacher.weights)}
        elif stage.role == "untrained":
            export_weights(student, folder / f"{name}.safetensors")
            result = {}
        else:
            done = self._fit(stage, scheme, train, loader)
            result = {"seconds": done.seconds, "steps": done.step, "epoch": (done.best or {}).get("epoch")}
        for split, rows in (("validation", self.data.validation), ("test", self.data.test)):
            result[split] = evaluation.evaluate(student, self.data.evaluation(rows), metrics=self.task.metrics)
        example = self.data.test[0].inputs.unsqueeze(0)
        result |= measure_cost(student, example).as_dict()
        result |= {"model": stage.model.name, "weights": f"{stage.name}/{name}.safetensors"}
        _write_json(folder / RESULT, result)
        return result

    def _fit(self, stage: Stage, scheme: Scheme, train: Train, loader: DataLoader[Batch]) -> Run:
        return fit(
            scheme,
            loader,
            epochs=train.epochs,
            evaluate=self.data.evaluation(self.data.validation),
            metrics=self.task.metrics,
            select=self.task.metric,
            optimizer=_named(train.optimizer),
            schedule=_named(train.schedule) if train.schedule else None,
            accumulate=train.accumulate,
            clip_grad_norm=train.clip_grad_norm,
            mixed_precision=train.mixed_precision,
            log_gradients=train.log_gradients,
            device=self.recipe.device,
            folder=self.folder / stage.name,
            resume=True,
            observers=self.observers,
        )

    def _scheme(self, stage: Stage) -> tuple[Scheme, Train, DataLoader[Batch]]:
        recipe = self.recipe
        if stage.role != "distilled":
            rows = self.data.all if stage.role == "teacher" else self.data.labelled
            train = recipe.teacher.train if recipe.teacher and stage.role == "teacher" else recipe.train
            scheme: Scheme = Supervised(self._model(stage.model), task=self.task.loss)
            return scheme, train, self.data.training(rows, train.batch_size)
        target = self.plugins.load("scheme", recipe.scheme.name)
        wants = inspect.signature(target).parameters
        batch_statistics = recipe.teacher is not None and recipe.teacher.batch_statistics
        parts: dict[str, Any] = {
            "task": (recipe.task.weight, self.task.loss),
            "knowledge": {
                name: (term.weight, self.plugins.make("knowledge", term.name, **term.options))
                for name, term in recipe.knowledge.items()
            },
            "student": lambda: self._model(stage.model),
            "peers": lambda: [self._model(stage.model) for _ in range(2)],
            "teacher": lambda: Frozen(self._trained(stage.teachers[0]), train_mode=batch_statistics),
        }
        given = {name: part() if callable(part) else part for name, part in parts.items() if name in wants}
        scheme = target(**given, **recipe.scheme.options)
        return scheme, recipe.train, self.data.training(self.data.few, recipe.train.batch_size)

    def _trained(self, stage: str) -> nn.Module:
        """The model of a finished stage."""
        ref = next(item.model for item in self.stages() if item.name == stage)
        model = self._model(ref)
        teacher = self.recipe.teacher
        stored = self.folder / stage / "student.safetensors"
        load_weights(model, teacher.weights if teacher and teacher.weights and stage == "teacher" else stored)
        return model

    def _summary(self, results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        metric, messages = self.task.metric, []
        test = {name: 100 * result["test"][metric] for name, result in results.items()}
        if "teacher" in results:
            # the distilled student may well pass its teacher on a few hundred rows; the one to compare with is alone
            teacher, student = (
                100 * results[name]["validation"][metric]
                for name in ("teacher", "alone" if "alone" in results else "distilled")
            )
            if teacher < student:
                message = (
                    f"the teacher ({teacher:.1f} % on validation) is weaker than the student ({student:.1f} %); train "
                    "it longer or take a larger one"
                )
                warnings.warn(message, WeakTeacherWarning, stacklevel=4)
                messages.append(message)
        return {
            "recipe": self.name,
            "summary": self.recipe.summary,
            "seed": self.recipe.seed,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "metric": metric,
            "metric_label": self.task.label,
            "test_rows": len(self.data.test),  # type: ignore[arg-type]  # map-style
            "stages": dict(results),
            "gain": test["distilled"] - test["alone"] if "alone" in test else None,
            "warnings": messages,
        }


def _ref(component: Component) -> ModelRef:
    return ModelRef(component.name, component.options)


def _named(component: Component) -> dict[str, Any]:
    return {"name": component.name, **component.options}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Keys whose values differ, as ``train.epochs: 2 -> 3``."""
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += _differences(before, after, f"{path}{key}.")
        elif before != after:
            found.append(f"{path}{key}: {before!r} -> {after!r}")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    atomic_write(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))
