"""The parts of a stage, built from a recipe: models, teachers, knowledge, task and scheme."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.data import DataLoader

from kdx import rng
from kdx.analysis.flops import count_flops
from kdx.analysis.stored import count_parameters
from kdx.batch import Batch
from kdx.datasets.view import View
from kdx.errors import PlanError, nearest
from kdx.experiment.components import SMOOTHED, check_void, locating, needs_of, new_model, task_of
from kdx.experiment.data import ExperimentData
from kdx.experiment.description import Description
from kdx.experiment.model_source import ModelSource
from kdx.experiment.plan import train_of
from kdx.experiment.producing import produce
from kdx.experiment.recipe import Recipe
from kdx.experiment.recipe import Teacher as TeacherSection
from kdx.experiment.stage_store import head_of, store_section, store_views, told_teacher
from kdx.experiment.told_model import told_model
from kdx.head import Head
from kdx.ref import Ref
from kdx.registry import Plugins, default_plugins
from kdx.schemes.base import Scheme
from kdx.schemes.supervised import Supervised
from kdx.stage import Produced, Rows, Stage, Structure
from kdx.stage_name import split_name
from kdx.students.student_data import StudentData
from kdx.tasks.base import Task
from kdx.teachers import Frozen, Stored, Teacher
from kdx.training.evaluation import Measured
from kdx.training.weights import load_weights

__all__ = ["Assembly"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SMOOTHING = 0.1
"""Of the control with smoothed labels; Szegedy et al. 2016 and most work since."""


class Assembly:
    """Builds the parts of every stage of a recipe; the :class:`kdx.assistants.FinishedStages` that structures read.

    Args:
        recipe: what is run.
        stages: its plan.
        source: where the models of earlier stages come from.
        data: the rows; read when they are first needed if they are not given.
        plugins: where components come from; None takes those installed.
    """

    def __init__(
        self,
        recipe: Recipe,
        stages: Sequence[Stage],
        source: ModelSource,
        *,
        data: ExperimentData | None = None,
        plugins: Plugins | None = None,
    ) -> None:
        self.recipe = recipe
        self.stages = {stage.name: stage for stage in stages}
        self.source = source
        self.plugins = plugins or default_plugins()
        self.task = task_of(recipe, self.plugins)
        self._data = data
        self._models: dict[str, dict[str, Ref]] = {}
        if data is not None:
            self._tell(data)

    @property
    def data(self) -> ExperimentData:
        """The rows."""
        if self._data is None:
            self._data = ExperimentData(self.recipe, self.plugins)
            self._tell(self._data)
        return self._data

    def _tell(self, data: ExperimentData) -> None:
        with locating(f"task ({self.recipe.task.name})"):
            self.task.dataset(data.whole)

    def data_of(self, stage: str) -> ExperimentData:
        """The rows as the model of a stage takes them: a teacher of a view with inputs of its own takes those."""
        section = self.recipe.all_teachers.get(split_name(stage)[0])
        return self.data.seen(section.view if section else None)

    def task_for(self, stage: str) -> Task:
        """The task of a stage's model: that of the recipe, told of the rows that the model sees."""
        data = self.data_of(stage)
        return self.task if data.task is self.data.task else data.task

    @functools.cached_property
    def example(self) -> Any:
        """The inputs of one validation row, as a batch."""
        return self.example_of("")

    def example_of(self, stage: str) -> Any:
        """The inputs of one validation row, as a batch for the model of a stage."""
        return self.task.example(self.data_of(stage).validation[0])

    def build(self, ref: Ref, stage: str = "") -> nn.Module:
        """A new model for the shapes of the data, as a stage takes them."""
        data = self.data_of(stage)
        return new_model(ref, data.shape, data.facts, self.plugins)

    def described(self, stage: str, recipe: str) -> Description:
        """The description of a stage's model, for whoever uses it without this recipe."""
        data, files = self.data_of(stage), self.plugins.files
        source: Any = data.all.dataset
        preprocessing = getattr(source, "preprocessing", None)
        classes = getattr(source, "classes", None)
        return Description(
            recipe=recipe,
            stage=stage,
            model=self.ref(stage),
            shape=data.shape,
            facts=data.facts,
            task=self.recipe.task.ref,
            classes=None if classes is None else tuple(map(str, classes)),
            preprocessing=None if preprocessing is None else preprocessing.as_dict(),
            code={name: copy.as_posix() for name, copy in (files.copies if files else {}).items()},
        )

    def parameters(self, ref: Ref) -> int:
        """The number of parameters of a model for the shapes of the data."""
        data = self.data  # read outside, as no data can be read on that device
        with torch.device("meta"), rng.isolated():
            return count_parameters(new_model(ref, data.shape, data.facts, self.plugins))

    def flops(self, ref: Ref) -> int:
        """Operations of one forward pass of a model on one sample."""
        with rng.isolated():
            return count_flops(self.build(ref), self.example)

    def ref(self, stage: str) -> Ref:
        """The model of a stage, or of ``stage:model``; a structure is made into one when it is first asked for.

        Raises:
            PlanError: the scheme of the stage trains no model of this name.
        """
        stage, named = split_name(stage)
        if named is not None:
            if named not in (known := self.models(stage)):
                raise PlanError(f"stage {stage!r} hands on no model {named!r}; {nearest(named, known)}")
            return known[named]
        model = self.stages[stage].model
        return self._produced(self.stages[stage], model).model if isinstance(model, Structure) else model

    def models(self, stage: str) -> Mapping[str, Ref]:
        """The models that the scheme of a stage trains, by their names in it, as far as they can be built again."""
        if stage not in self._models:
            result = self.source.result(stage)
            named = result.get("models", {Path(result["weights"]).stem: {"model": self.ref(stage).as_dict()}})
            self._models[stage] = {
                name: told_model(Ref.of(each["model"]), stage, self.plugins.files) for name, each in named.items()
            }
        return self._models[stage]

    def built(self, stage: str) -> bool:
        """Whether the scheme of a stage was built here, so that :meth:`models` needs no result."""
        return stage in self._models

    def model(self, stage: str) -> nn.Module:
        """The model of a stage with its trained weights, if it has any."""
        model = self.build(self.ref(stage), stage)
        if weights := self.source.weights(stage):
            load_weights(model, weights, sealed=True)
        return model

    def result(self, stage: str) -> Mapping[str, Any]:
        """The ``result.json`` of a finished stage."""
        return self.source.result(split_name(stage)[0])

    def quality(self, stage: str) -> float:
        """The metric of the task on the validation rows."""
        return self.source.quality(stage)

    def student(self, stage: Stage) -> nn.Module:
        """The model that a stage trains, with the weights that it starts from."""
        student, weights = self.build(self.ref(stage.name), stage.name), self.recipe.student.weights
        if isinstance(stage.model, Structure):
            if start := self._produced(stage, stage.model).weights:
                student.load_state_dict(dict(start))
        elif weights and stage.role != "teacher" and stage.model == self.recipe.student.model:
            load_weights(student, weights)
        if stage.begins_with and (trained := self.source.weights(stage.begins_with)):
            load_weights(student, trained, sealed=True)
        return student

    def scheme(self, stage: Stage) -> Scheme:
        """The scheme under which a stage trains its student; its first random draws are those of the student."""
        student = self.student(stage)
        made = {id(student): self.ref(stage.name)}
        if stage.role not in ("assistant", "distilled"):
            smoothed = {SMOOTHED: SMOOTHING} if stage.role == "label-smoothing" else {}
            task = task_of(self.recipe, self.plugins, **smoothed)
            with locating(f"stage {stage.name}"):
                head = self._head(stage, student) if task.takes_held or not smoothed else None
                scheme: Scheme = Supervised(student, task=task, student_output=head)
        else:
            with rng.isolated():  # whatever else draws, the rows come in the order in which the student alone sees them
                scheme = self._taught(stage, student, made)
        first, *others = students = scheme.students
        self._models[stage.name] = {first: self.ref(stage.name)} | {
            name: made[id(students[name])] for name in others if id(students[name]) in made
        }
        for name, origin in stage.starts.items():
            if name == "student":
                continue  # it began so
            if name not in students:
                raise PlanError(
                    f"stage {stage.name!r}: starts: {type(scheme).__name__} trains no model {name!r}; "
                    f"{nearest(name, students)}"
                )
            if trained := self.source.weights(origin):
                load_weights(students[name], trained, sealed=True)
        return scheme

    def knowledge(self, stage: Stage) -> dict[str, Any]:
        """The weighted knowledge terms of a stage, by name."""
        made = {}
        for name, term in (self.recipe.knowledge if stage.knowledge is None else stage.knowledge).items():
            with locating(f"stage {stage.name}: knowledge.{name} ({term.name})"):
                component = self.plugins.make("knowledge", term)
                if self._rows(stage) == "few":
                    check_void(self.recipe, self.task, component)
                made[name] = (term.weight, component)
        return made

    def stored(self, teacher: str) -> Stored:
        """A teacher of this recipe that answers from its store."""
        return self.source.stored(teacher, self.data.few, self.model(teacher), self.task)

    @property
    def metric(self) -> str:
        """The metric of the task that says how good a model is."""
        return self.task.metric

    def batches(self, rows: Rows | Literal["validation"] = "few", *, stage: str = "") -> Iterable[Batch]:
        """Training or validation rows in order, as the data has them, see :class:`kdx.assistants.FinishedStages`."""
        if rows not in (known := (*get_args(Rows), "validation")):
            raise PlanError(f"batches: there are no rows {rows!r}; {nearest(rows, known)}")
        return self.data_of(stage).plain(rows, self.recipe.train.batch_size)

    def evaluate(self, model: nn.Module) -> Measured:
        """The metrics of the task on the validation rows."""
        rows = self.batches("validation")
        return StudentData(rows, task=self.task, validation=rows).evaluate(model)

    def training(self, stage: Stage, scheme: Scheme | None) -> DataLoader[Batch]:
        """The training batches of a stage; a scheme may put them together in its own way."""
        source = self.data_of(stage.name)
        data: View = getattr(source, self._rows(stage))
        if views := store_views(self.recipe, self._taught_by(stage)):
            data = data.cycling(views)
        return source.training(data, train_of(stage, self.recipe).batch_size, scheme)

    def _rows(self, stage: Stage) -> str:
        """Which rows of the data a stage trains on: ``all``, ``few`` or ``labelled``."""
        return stage.rows or {"teacher": "all", "assistant": "few", "distilled": "few"}.get(stage.role, "labelled")

    def _taught(self, stage: Stage, student: nn.Module, made: dict[int, Ref]) -> Scheme:
        """The scheme with all that its signature names, built in the same order for every scheme.

        ``made`` is told what every model that may be trained was built from, by its ``id``.
        """
        ref = stage.scheme or self.recipe.scheme
        target = self.plugins.load("scheme", ref.name)
        weight = self.recipe.task.weight if stage.task_weight is None else stage.task_weight
        along = target.trains_teacher

        def build(ref: Ref) -> nn.Module:
            model = self.build(ref)
            made[id(model)] = ref
            return model

        def teacher(name: str) -> Teacher | nn.Module:
            return self._along(name, build) if along else self._teacher(name)

        parts: dict[str, Callable[[], Any]] = {
            "student": lambda: student,
            "task": lambda: (weight, self.task_for(stage.name)),
            "knowledge": lambda: self.knowledge(stage),
            "peers": lambda: [student, *map(build, self._peers(stage))],
            "teacher": lambda: teacher(self._teachers_of(stage, along=along)[0]),
            "teachers": lambda: {name: teacher(name) for name in self._teachers_of(stage, along=along)},
            "qualities": lambda: (
                {name: self.quality(name) for name in stage.teachers} if self.task.higher_is_better else None
            ),
        }
        needs = needs_of(target)
        given = {name: make() for name, make in parts.items() if name in needs}
        with locating(f"stage {stage.name}: scheme ({ref.name})"):
            if (head := self._head(stage, student)) is not None:
                if "student_output" not in inspect.signature(target).parameters:
                    raise ValueError("it takes no student_output, so it needs logits made whole; remove student.head")
                given["student_output"] = head
            scheme: Scheme = target(**given, **ref.options)
            if self._rows(stage) == "few":
                check_void(self.recipe, self.task, scheme)  # its default knowledge
        return scheme

    def _head(self, stage: Stage, model: nn.Module) -> Head | None:
        """The head that the logits of a stage's model are held as, where its section says so."""
        section = self.recipe.all_teachers.get(stage.name) if stage.role == "teacher" else None
        if section is None and stage.model == self.recipe.student.model:
            return head_of(self.recipe.student.head, model)
        return None if section is None else head_of(section.head, model)

    def _peers(self, stage: Stage) -> list[Ref]:
        """The peers beside the student."""
        peers = self.recipe.peers
        return peers if isinstance(peers, list) else [self.ref(stage.name)] * ((peers or 2) - 1)

    def taught_along(self, stage: Stage) -> list[str]:
        """The teachers that the scheme of a stage trains along and that have a stage of their own too."""
        taught = stage.role in ("assistant", "distilled")
        along = taught and self.plugins.load("scheme", (stage.scheme or self.recipe.scheme).name).trains_teacher
        return [name for name in self.recipe.all_teachers if name in self.stages] if along else []

    def _teachers_of(self, stage: Stage, *, along: bool) -> list[str]:
        """Names of a stage's teachers: earlier stages and stores, or the sections of those trained along."""
        return list(self.recipe.all_teachers) if along else list(self._taught_by(stage))

    def _taught_by(self, stage: Stage) -> tuple[str, ...]:
        """Names of earlier stages, and of teachers that are a store without a model."""
        if stage.role not in ("assistant", "distilled") or not (told := self.recipe.told_teachers):
            return stage.teachers
        return tuple(name for name in self.recipe.all_teachers if name in told or name in stage.teachers)

    def _along(self, name: str, build: Callable[[Ref], nn.Module]) -> nn.Module:
        """A new model that the scheme trains along; of a teacher with a stage of its own the same."""
        section = self.recipe.all_teachers[name]
        ref = self.ref(name) if name in self.stages else section.model
        assert ref is not None  # one without a model is a store, which no scheme trains along
        model = build(ref)
        if section.weights:
            load_weights(model, section.weights)
        return model

    def _teacher(self, name: str) -> Teacher:
        """A frozen teacher from its stage."""
        stage, _ = split_name(name)
        if stage in self.recipe.told_teachers:
            return told_teacher(self.recipe, self.data.few, stage)
        if store_section(self.recipe, stage):
            return self.stored(name)
        section = self.recipe.all_teachers.get(stage, self.recipe.teacher)
        view = section.view if section else None
        if stage not in self.recipe.all_teachers and self.data.seen(view) is not self.data:
            view = None  # an assistant is taught on the student's inputs
        return _frozen(self.model(name), section, view=view)

    def _produced(self, stage: Stage, structure: Structure) -> Produced:
        """The model that a structure is made into: once, then as the source kept it."""
        if (kept := self.source.produced(stage.name)) is not None:
            told_model(kept.model, stage.name, self.plugins.files)
            return kept
        alike = [other.name for other in self.stages.values() if (other.model, other.seed) == (structure, stage.seed)]
        produced = next(filter(None, map(self.source.produced, alike)), None)
        if produced is None:
            produced = produce(self, stage, structure)
        self.source.keep(stage.name, produced)
        return produced


def _frozen(model: nn.Module, section: TeacherSection | None, *, view: str | None) -> Frozen:
    if section is None:
        return Frozen(model)
    dtype = DTYPES[section.dtype] if section.dtype else None
    options: dict[str, Any] = {"dtype": dtype, "device": section.device, "view": view}
    return Frozen(model, train_mode=section.batch_statistics, output=head_of(section.head, model), **options)
