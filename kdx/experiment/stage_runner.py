"""One stage of an experiment: its model, its scheme, its fit, its result."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kdx import rng
from kdx.analysis.cost import measure_cost
from kdx.analysis.flops import count_flops
from kdx.batch import Batch
from kdx.datasets.view import View
from kdx.experiment.data import ExperimentData
from kdx.experiment.plan import train_of
from kdx.experiment.recipe import Recipe, Train
from kdx.experiment.recipe import Teacher as TeacherSection
from kdx.experiment.recipe_checks import locating
from kdx.experiment.stage_store import store_views, stored_teacher
from kdx.experiment.teacher_cache import TeacherCache
from kdx.files import read_json, write_json
from kdx.ref import Ref
from kdx.registry import default_plugins
from kdx.schemes.base import Scheme
from kdx.schemes.supervised import Supervised
from kdx.stage import Stage, Structure
from kdx.students.contract import Contract
from kdx.tasks.kinds import task_kind
from kdx.teachers import Frozen, Stored, Teacher
from kdx.training import evaluation
from kdx.training.checkpoint import export_weights, load_weights
from kdx.training.loop import fit
from kdx.training.run import Run

__all__ = ["StageRunner"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RESULT, MODEL, START = "result.json", "model.json", "start.safetensors"
SMOOTHING = 0.1
"""Of the control with smoothed labels; Szegedy et al. 2016 and most work since."""


class StageRunner:
    """Runs the stages of one experiment, and answers what a structure asks about those that are finished.

    Args:
        recipe: what to run.
        folder: the run's folder; every stage has one in it.
        stages: the plan.
        cache: where trained teachers are kept for other runs.
        observers: see :func:`kdx.fit`.
        notify: is given a sentence for the user, as it happens.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        stages: Sequence[Stage],
        cache: TeacherCache,
        observers: Sequence[object] = (),
        notify: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.stages = {stage.name: stage for stage in stages}
        self.cache = cache
        self.observers = list(observers)
        self.notify = notify
        self.plugins = default_plugins()
        self.task = task_kind(recipe.task.name, margin=recipe.task.margin)

    @functools.cached_property
    def data(self) -> ExperimentData:
        """The rows, read when they are first needed."""
        return ExperimentData(self.recipe)

    @property
    def example(self) -> Tensor:
        """One test image, as a batch."""
        inputs: Tensor = self.data.test[0].inputs
        return inputs.unsqueeze(0)

    def run(self, stage: Stage) -> dict[str, Any]:
        """Runs one stage, or reads its result if it is finished."""
        folder = self.folder / stage.name
        if (folder / RESULT).exists():
            return read_json(folder / RESULT)
        model = self._resolve(stage)
        set_seed(self.recipe.seed + stage.seed)
        scheme = self._scheme(stage, model)
        name, student = next(iter(scheme.students.items()))
        result: dict[str, Any] = {"role": stage.role, "teachers": list(stage.teachers), "model": model.name}
        result |= self._train(stage, scheme, folder / f"{name}.safetensors")
        output = scheme.output_of(name)
        for split, rows in (("validation", self.data.validation), ("test", self.data.test)):
            loader = self.data.evaluation(rows)
            result[split] = evaluation.evaluate(student, loader, metrics=self.task.metrics, output=output)
        if len(scheme.students) > 1:
            loader = self.data.evaluation(self.data.test)
            result["students"] = {
                peer: evaluation.evaluate(each, loader, metrics=self.task.metrics, output=scheme.output_of(peer))
                for peer, each in scheme.students.items()
            }
        result |= measure_cost(student, self.example).as_dict()
        result |= {"weights": f"{stage.name}/{name}.safetensors"}
        write_json(folder / RESULT, result)
        return result

    # what a structure sees of the stages before it: kdx.stage.FinishedStages

    def ref(self, stage: str) -> Ref:
        """The model of a stage that has begun."""
        return self._resolve(self.stages[stage])

    def result(self, stage: str) -> dict[str, Any]:
        """What a finished stage wrote down."""
        return read_json(self.folder / stage / RESULT)

    def quality(self, stage: str) -> float:
        """The metric of the task on validation rows."""
        return float(self.result(stage)["validation"][self.task.metric])

    def model(self, stage: str) -> nn.Module:
        """The trained model of a finished stage."""
        model = self.build(self.ref(stage))
        load_weights(model, self.folder / self.result(stage)["weights"])
        return model

    def build(self, ref: Ref) -> nn.Module:
        """A new model for the shapes of the data."""
        with locating(f"model ({ref.name})"):
            model: nn.Module = self.plugins.make("model", ref, **self.data.shape)
        return model

    def parameters(self, ref: Ref) -> int:
        """How many parameters a model has for the shapes of the data."""
        with torch.device("meta"), rng.isolated():
            return sum(parameter.numel() for parameter in self.build(ref).parameters())

    def flops(self, ref: Ref) -> int:
        """Operations of one forward pass of a model on one sample."""
        with rng.isolated():
            return count_flops(self.build(ref), self.example)

    def _resolve(self, stage: Stage) -> Ref:
        """The model of a stage; a structure is produced once and then read."""
        if not isinstance(stage.model, Structure):
            return stage.model
        folder = self.folder / stage.name
        if not (folder / MODEL).exists():
            with rng.isolated():
                torch.manual_seed(self.recipe.seed + stage.seed)
                produced = stage.model.produce(self)
                model = self.build(produced.model)
                classes = self.data.shape["num_classes"]
                Contract(self.example, (((1, classes), torch.float32),)).check(model)
                if produced.weights is not None:
                    model.load_state_dict(dict(produced.weights))
                    export_weights(model, folder / START)
            write_json(folder / MODEL, {"model": produced.model.as_dict(), "start": produced.weights is not None})
        return Ref.of(read_json(folder / MODEL)["model"])

    def _student(self, stage: Stage, model: Ref) -> nn.Module:
        student = self.build(model)
        if isinstance(stage.model, Structure):
            if read_json(self.folder / stage.name / MODEL)["start"]:
                load_weights(student, self.folder / stage.name / START)
        elif self.recipe.student.weights and stage.role != "teacher" and model == self.recipe.student.model:
            load_weights(student, self.recipe.student.weights)
        if stage.start is not None:
            load_weights(student, self.folder / self.result(stage.start)["weights"])
        return student

    def _scheme(self, stage: Stage, model: Ref) -> Scheme:
        recipe = self.recipe
        if stage.role not in ("assistant", "distilled"):
            smoothing = SMOOTHING if stage.role == "label-smoothing" else 0.0
            task = task_kind(recipe.task.name, margin=recipe.task.margin, label_smoothing=smoothing)
            return Supervised(self._student(stage, model), task=task.loss)
        student = self._student(stage, model)
        with rng.isolated():  # whatever else draws, the rows come in the order in which the student alone sees them
            return self._taught(stage, model, student)

    def _taught(self, stage: Stage, model: Ref, student: nn.Module) -> Scheme:
        """The scheme under which a student is taught, with all that its signature names."""
        recipe = self.recipe
        component = recipe.scheme if stage.scheme is None else stage.scheme
        target = self.plugins.load("scheme", component.name)
        wants = inspect.signature(target).parameters
        given: dict[str, Any] = {}
        if "student" in wants:
            given["student"] = student
        if "task" in wants:
            weight = recipe.task.weight if stage.task_weight is None else stage.task_weight
            given["task"] = (weight, self.task.loss)
        if "knowledge" in wants:
            given["knowledge"] = self._knowledge(stage)
        if "peers" in wants:
            given["peers"] = [student, *(self.build(peer) for peer in self._peers(model))]
        if "teacher" in wants:
            given["teacher"] = self._teachers(stage, along=target.trains_teacher, only_first=True)["teacher"]
        if "teachers" in wants:
            given["teachers"] = self._teachers(stage, along=target.trains_teacher)
        if "qualities" in wants:
            given["qualities"] = {name: self.quality(name) for name in stage.teachers}
        with locating(f"stage {stage.name}: scheme ({component.name})"):
            scheme: Scheme = target(**given, **component.options)
        return scheme

    def _knowledge(self, stage: Stage) -> dict[str, Any]:
        terms = self.recipe.knowledge if stage.knowledge is None else stage.knowledge
        made = {}
        for name, term in terms.items():
            with locating(f"stage {stage.name}: knowledge.{name} ({term.name})"):
                made[name] = (term.weight, self.plugins.make("knowledge", term))
        return made

    def _peers(self, student: Ref) -> list[Ref]:
        """The peers beside the student."""
        peers = self.recipe.peers
        if isinstance(peers, list):
            return peers
        return [student] * ((peers or 2) - 1)

    def _teachers(self, stage: Stage, *, along: bool, only_first: bool = False) -> dict[str, Teacher | nn.Module]:
        """Name -> teacher: frozen ones from their stages, or new models that the scheme trains along."""
        sections = self.recipe.all_teachers
        names = list(sections) if along else list(stage.teachers)
        teachers: dict[str, Teacher | nn.Module] = {}
        for name in names[:1] if only_first else names:
            section = sections.get(name, self.recipe.teacher)
            key = "teacher" if only_first else name
            if along:
                teachers[key] = self.build(sections[name].model)
                if weights := sections[name].weights:
                    load_weights(teachers[key], weights)
            elif section and section.store:
                teachers[key] = self._stored(name)
            else:
                teachers[key] = _frozen(self.model(name), section)
        return teachers

    def _stored(self, name: str) -> Stored:
        return stored_teacher(self.recipe, self.data.few, self.model(name), name, self.folder / name, self.notify)

    def _train(self, stage: Stage, scheme: Scheme, weights: Path) -> dict[str, Any]:
        """Trains or loads the stage's model and leaves its weights in the folder."""
        student = next(iter(scheme.students.values()))
        section = self.recipe.all_teachers.get(stage.name) if stage.role == "teacher" else None
        if section and section.weights:
            load_weights(student, section.weights)
            export_weights(student, weights)
            return {"loaded": str(section.weights)}
        if stage.role == "untrained":
            export_weights(student, weights)
            return {}
        kept = None
        if section and section.reuse and isinstance(stage.model, Ref):
            kept = self.cache.entry(stage, self.recipe, self.data)
            if found := kept.load(student, self.notify):
                export_weights(student, weights)
                self.notify(f"{stage.name}: trained before with the same model, data, training and seed; from {found}")
                return {"reused": str(found)}
        run = self._fit(stage, scheme)
        if kept:
            kept.save(student)
        result: dict[str, Any] = {
            "seconds": run.seconds,
            "steps": run.step,
            "epoch": (run.best or {}).get("epoch"),
        }
        if self.recipe.data.stream:
            # the newest of each; none in a stage that stopped before its first log
            ends = {key: value for row in run.history for key, value in row.items() if key.endswith("/so_far")}
            result["prequential"] = {key.split("/")[1]: value for key, value in ends.items()}
            if ends:
                shown = ", ".join(f"{name} {100 * value:.1f} %" for name, value in result["prequential"].items())
                self.notify(f"{stage.name}: accuracy on each batch before training on it: {shown}")
        return result

    def _fit(self, stage: Stage, scheme: Scheme) -> Run:
        train = train_of(stage, self.recipe)
        return fit(
            scheme,
            self._batches(stage, scheme),
            epochs=None if train.steps else train.epochs,
            steps=train.steps,
            prequential=self.recipe.data.stream is not None,
            evaluate=self.data.evaluation(self.data.validation),
            metrics=self.task.metrics,
            select=self.task.metric if stage.select else None,
            optimizer=train.optimizer,
            schedule=train.schedule,
            accumulate=train.accumulate,
            clip_grad_norm=train.clip_grad_norm,
            mixed_precision=train.mixed_precision,
            log_gradients=train.log_gradients,
            device=self.recipe.device,
            folder=self.folder / stage.name,
            resume=True,
            checkpoint_every=self._checkpoint_every(train),
            observers=self.observers,
        )

    def _checkpoint_every(self, train: Train) -> int | None:
        """Steps between checkpoints on a stream: an epoch of other data, and a tenth of the stage at most."""
        if self.recipe.data.stream is None or train.steps is None:
            return None  # one after each epoch
        epoch = math.ceil(len(self.data.all) / (train.batch_size * train.accumulate))
        return min(epoch, math.ceil(train.steps / 10))

    def _batches(self, stage: Stage, scheme: Scheme | None) -> DataLoader[Batch]:
        rows = stage.rows or {"teacher": "all", "assistant": "few", "distilled": "few"}.get(stage.role, "labelled")
        data: View = getattr(self.data, rows)
        if views := store_views(self.recipe, stage.teachers):
            data = data.cycling(views)
        return self.data.training(data, train_of(stage, self.recipe).batch_size, scheme)


def _frozen(model: nn.Module, section: TeacherSection | None) -> Frozen:
    if section is None:
        return Frozen(model)
    dtype = DTYPES[section.dtype] if section.dtype else None
    return Frozen(model, train_mode=section.batch_statistics, dtype=dtype, device=section.device)
