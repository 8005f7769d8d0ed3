"""``run``: a recipe becomes a folder with trained models, metrics and a report."""

from __future__ import annotations

import inspect
import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from kdx import evaluation, registry
from kdx.assistants.base import ModelRef, Stage
from kdx.batch import IGNORE, Batch
from kdx.checkpoint import atomic_write, load_weights
from kdx.cost import measure_cost
from kdx.datasets.augment import ShiftFlip
from kdx.datasets.splits import few_labels, train_validation_split
from kdx.datasets.view import View
from kdx.errors import RecipeError, RunExistsError
from kdx.loop import fit
from kdx.losses import cross_entropy
from kdx.recipe import Component, Recipe, Train, check_recipe, load_recipe
from kdx.report import write_report
from kdx.run_state import Run
from kdx.schemes.base import Scheme
from kdx.schemes.supervised import Supervised

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

    def run(self, *, resume: bool = False, force: bool = False) -> dict[str, Any]:
        """Runs what is left to run and returns the summary."""
        self._claim(resume=resume, force=force)
        if (done := self.folder / SUMMARY).exists():
            return _read_json(done)
        threads = torch.get_num_threads()
        torch.set_num_threads(self.recipe.threads or threads)
        try:
            self._load_data()
            results = {stage.name: self._stage(stage) for stage in self.stages()}
            summary = self._summary(results)
        finally:
            torch.set_num_threads(threads)
        _write_json(self.folder / SUMMARY, summary)
        write_report(self.folder, summary)
        return summary

    def stages(self) -> list[Stage]:
        """The plan: the teacher if there is one, the student alone, the student distilled."""
        recipe = self.recipe
        student = _ref(recipe.student.model)
        stages = []
        if recipe.teacher:
            stages.append(Stage("teacher", "teacher", _ref(recipe.teacher.model)))
        if recipe.control:
            stages.append(Stage("alone", "control", student))
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

    def _load_data(self) -> None:
        data, seed = self.recipe.data, self.recipe.seed
        make = {
            split: self.plugins.make("dataset", data.dataset.name, split=split, **data.dataset.options)
            for split in ("train", "test")
        }
        whole = make["train"]
        self.shape = {"num_classes": whole.num_classes, "input_shape": whole.input_shape}
        rows, held_out = train_validation_split(whole.targets, data.validation, seed)
        targets = whole.targets[rows]
        student_targets = targets if data.labelled is None else few_labels(targets, data.labelled, seed)
        augment = ShiftFlip(data.augment.shift, data.augment.flip, seed=seed) if data.augment else None
        self.train_rows = len(rows)
        self.sets = {
            "all": View(whole, rows, targets, transform=augment),
            "few": View(whole, rows, student_targets, transform=augment),
            "validation": View(whole, held_out),
            "test": View(make["test"]),
        }
        labelled = (student_targets != IGNORE).nonzero().squeeze(1)
        self.sets["labelled"] = View(whole, rows[labelled], targets[labelled], transform=augment)

    def _train_loader(self, name: str, train: Train) -> DataLoader[Batch]:
        """Epochs of equal length on every set, so that all arms take the same number of steps."""
        dataset = self.sets[name]
        sampler = RandomSampler(dataset, num_samples=self.train_rows)
        return DataLoader(dataset, train.batch_size, sampler=sampler, num_workers=self.recipe.data.workers)

    def _eval_loader(self, name: str) -> DataLoader[Batch]:
        return DataLoader(self.sets[name], batch_size=500)

    def _model(self, ref: ModelRef) -> nn.Module:
        model: nn.Module = self.plugins.make("model", ref.name, **ref.options, **self.shape)
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
        else:
            done = self._fit(stage, scheme, train, loader)
            result = {"seconds": done.seconds, "steps": done.step, "epoch": (done.best or {}).get("epoch")}
        result["validation"] = evaluation.evaluate(student, self._eval_loader("validation"))
        result["test"] = evaluation.evaluate(student, self._eval_loader("test"))
        example = self.sets["test"][0].inputs.unsqueeze(0)
        result |= measure_cost(student, example).as_dict()
        result |= {"model": stage.model.name, "weights": f"{stage.name}/{name}.safetensors"}
        _write_json(folder / RESULT, result)
        return result

    def _fit(self, stage: Stage, scheme: Scheme, train: Train, loader: DataLoader[Batch]) -> Run:
        return fit(
            scheme,
            loader,
            epochs=train.epochs,
            evaluate=self._eval_loader("validation"),
            select="accuracy",
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
        if stage.role == "teacher":
            assert recipe.teacher is not None
            train = recipe.teacher.train
            return Supervised(self._model(stage.model)), train, self._train_loader("all", train)
        if stage.role == "control":
            return Supervised(self._model(stage.model)), recipe.train, self._train_loader("labelled", recipe.train)
        target = self.plugins.load("scheme", recipe.scheme.name)
        wants = inspect.signature(target).parameters
        options = recipe.scheme.options
        parts: dict[str, Any] = {
            "task": (recipe.task_weight, cross_entropy),
            "knowledge": {
                name: (term.weight, self.plugins.make("knowledge", term.name, **term.options))
                for name, term in recipe.knowledge.items()
            },
            "student": lambda: self._model(stage.model),
            "peers": lambda: [self._model(stage.model) for _ in range(2)],
            "teacher": lambda: self._trained(stage.teachers[0]),
        }
        given = {name: part() if callable(part) else part for name, part in parts.items() if name in wants}
        scheme: Scheme = target(**given, **options)
        return scheme, recipe.train, self._train_loader("few", recipe.train)

    def _trained(self, stage: str) -> nn.Module:
        """The model of a finished stage."""
        ref = next(item.model for item in self.stages() if item.name == stage)
        model = self._model(ref)
        teacher = self.recipe.teacher
        stored = self.folder / stage / "student.safetensors"
        load_weights(model, teacher.weights if teacher and teacher.weights and stage == "teacher" else stored)
        return model

    def _summary(self, results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        messages = []
        accuracy = {name: 100 * result["test"]["accuracy"] for name, result in results.items()}
        if "teacher" in results:
            student = max(
                (100 * results[name]["validation"]["accuracy"] for name in results if name != "teacher"), default=0.0
            )
            teacher = 100 * results["teacher"]["validation"]["accuracy"]
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
            "test_rows": len(self.sets["test"]),
            "stages": dict(results),
            "gain": accuracy["distilled"] - accuracy["alone"] if "alone" in accuracy else None,
            "warnings": messages,
        }


def environment(seed: int) -> dict[str, Any]:
    """What a result depends on beside the recipe: versions, device, seed, commit, command."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True, check=False
    )
    packages = ("kdx", "torch", "accelerate", "numpy", "torchmetrics", "pluggy", "triton")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "seed": seed,
        "git_commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "cpu_cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {name: package_version(name) for name in packages},
    }


def package_version(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


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
