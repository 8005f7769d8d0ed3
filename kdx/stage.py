"""The stages of an experiment: what each trains, on which rows, taught by whom."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal, Protocol, get_args

from pydantic import GetCoreSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.errors import PlanError, nearest
from kdx.ref import Ref
from kdx.schemes.weights import Weight
from kdx.stage_name import split_name
from kdx.tasks.base import Task

__all__ = ["FinishedStages", "Produced", "Role", "Rows", "Stage", "Structure", "Term", "in_order"]


Role = Literal["teacher", "probe", "alone", "label-smoothing", "untrained", "assistant", "distilled"]
"""The purpose of a stage; it sets the defaults of everything that the stage leaves open."""


Rows = Literal["all", "few", "labelled"]
"""Training rows: all with every label, all with the labels that the student may see, only those with a label."""


_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


class Term(Ref):
    """A knowledge component with its weight in the total loss: ``{name: soft-targets, weight: 0.9, temperature: 4}``.

    Args:
        name: of the component.
        weight: a number or a schedule of :mod:`kdx.schemes.weights`.
        **options: of the component.

    Example:
        >>> Term("soft-targets", weight=0.9, temperature=4.0).options
        {'temperature': 4.0}
    """

    __slots__ = ("_weight",)
    keys = ("name", "weight")

    def __init__(self, name: str, /, *, weight: Weight = 1.0, **options: Any) -> None:
        super().__init__(name, **options)
        self._weight: Weight = TypeAdapter(Weight).validate_python(weight)

    @property
    def weight(self) -> Weight:
        """Weight of the component in the total loss."""
        return self._weight

    @override
    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "weight": self.weight, **self.options}

    @classmethod
    @override
    def _keys(cls, handler: GetCoreSchemaHandler) -> dict[str, CoreSchema]:
        return {"weight": handler.generate_schema(Weight)}


class FinishedStages(Protocol):
    """The finished stages that a structure looks at, with the rows and the task of the experiment.

    The test rows are not among them: what a structure is made into is decided on training and validation rows.
    ``stage`` is the name of a stage, or ``"stage:model"`` for another model that its scheme trained, as
    ``"co-studying:teacher"``.
    """

    @property
    def task(self) -> Task:
        """The task of the experiment: the loss, the metrics and the form of the outputs."""

    @property
    def metric(self) -> str:
        """The metric of the task that says how good a model is, as :meth:`quality` and :meth:`evaluate` have it."""

    @property
    def example(self) -> Tensor:
        """One image, as a batch ``[1, ...]``."""

    def ref(self, stage: str) -> Ref:
        """The model that the stage trained."""

    def model(self, stage: str) -> nn.Module:
        """The trained model of the stage, on the CPU."""

    def result(self, stage: str) -> Mapping[str, Any]:
        """The stage's ``result.json``; ``["validation"]`` holds its metrics."""

    def quality(self, stage: str) -> float:
        """The metric of the task on the validation rows."""

    def batches(self, rows: Rows | Literal["validation"] = "few", *, stage: str = "") -> Iterable[Batch]:
        """Rows in order and without augmentation, in batches of the recipe's size; the same however often.

        Args:
            rows: as those of :class:`Stage`, ``"few"`` with the labels that the student may see; or those held out.
            stage: whose model they are for, where a teacher takes other inputs than the student.
        """

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """The metrics of the task on the validation rows; the model's modes and the random state stay as they are."""

    def build(self, ref: Ref) -> nn.Module:
        """A new model for the shapes of the data, drawn from torch's global generator."""

    def parameters(self, ref: Ref) -> int:
        """The number of parameters of a model for the shapes of the data; nothing is drawn."""

    def flops(self, ref: Ref) -> int:
        """Operations of one forward pass of a model on one sample, see :func:`kdx.analysis.count_flops`."""


@dataclass(frozen=True, slots=True)
class Produced:
    """The model that a structure was made into.

    Args:
        model: what the stage trains, such that it can be built again without the stages it was made from.
        weights: what it starts with, as from ``state_dict()``; None draws them.
    """

    model: Ref
    weights: Mapping[str, Tensor] | None = None


class Structure(ABC):
    """A student that is not known before its stage begins: chosen, pruned, quantised or searched.

    Two structures of one plan made twice should be equal; a dataclass is. The stage keeps what was produced in
    ``model.json`` (and ``start.safetensors``), so that a resumed stage and every later one see the same model.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages that :meth:`produce` looks at."""
        return ()

    @abstractmethod
    def produce(self, finished: FinishedStages) -> Produced:
        """Makes the structure when the stage begins. It must be the same every time.

        Raises:
            PlanError: it cannot be made; the message says what to change.
        """


@dataclass(frozen=True, slots=True)
class Stage:
    """One ordinary, resumable training run of a plan. What it leaves open comes from its role and the recipe.

    Args:
        name: unique in the plan; also the name of its folder: small letters, digits, ``-`` and ``_``.
        role: ``"teacher"`` trains on all labels, ``"probe"``, ``"alone"`` and ``"label-smoothing"`` on the labels
            alone, ``"untrained"`` not at all, ``"assistant"`` and ``"distilled"`` under the recipe's scheme.
        model: what is trained: a model by name, or a structure that the stage produces.
        teachers: names of earlier stages whose models teach here. A scheme with one teacher takes the first. A stage
            hands on every model that its scheme trains (:attr:`kdx.Scheme.students`): ``"stage:model"``, as
            ``"co-studying:teacher"``, is another one than its student. All of them are those of the epoch that the
            student's metric selects.
        start: an earlier stage of the same model, whose trained weights this stage begins with; ``"stage:model"`` too.
        starts: the same for the other models that the scheme trains, by their names in it: a teacher that is trained
            along begins with ``{"teacher": "teacher"}`` as the stage ``teacher`` left it, and is else a new one.
            ``"student"`` is short for ``start``.
        scheme: instead of the recipe's, as ``Ref("mutual")``.
        knowledge: terms by name, instead of the recipe's, as ``{"kd": Term("soft-targets", weight=0.5)}``.
        task_weight: instead of the recipe's.
        train: keys of the recipe's section ``train`` that differ, as ``{"epochs": 2, "optimizer": Ref("SGD")}``.
        rows: training rows; None takes ``"all"`` for a teacher, ``"few"`` under a scheme, else ``"labelled"``.
        seed: added to the recipe's seed. With 0 all stages begin from the same random state, so that the student
            alone and the distilled one start from the same weights and see the rows in the same order.
        select: whether the weights of the best epoch on validation are kept, rather than those of the last.

    Raises:
        PlanError: the name cannot be a folder, the role is unknown, or model or teachers are of another type.
    """

    name: str
    role: Role
    model: Ref | Structure
    teachers: tuple[str, ...] = ()
    start: str | None = None
    starts: Mapping[str, str] = field(default_factory=dict)
    scheme: Ref | None = None
    knowledge: Mapping[str, Term] | None = None
    task_weight: float | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    rows: Rows | None = None
    seed: int = 0
    select: bool = True

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise PlanError(
                f"stage name {self.name!r} must consist of small letters, digits, '-' and '_', as it names a folder"
            )
        if self.role not in get_args(Role):
            raise PlanError(f"stage {self.name!r}: unknown role {self.role!r}; {nearest(self.role, get_args(Role))}")
        if not isinstance(self.model, Ref | Structure):
            raise PlanError(
                f"stage {self.name!r}: model: expected a Ref or a Structure, got {self.model!r}; write "
                "kdx.Ref(name, option=value)"
            )
        if not isinstance(self.scheme, Ref | None):
            raise PlanError(
                f"stage {self.name!r}: scheme: expected a Ref, got {self.scheme!r}; write kdx.Ref(name, option=value)"
            )
        for name, term in (self.knowledge or {}).items():
            if not isinstance(term, Term):
                raise PlanError(
                    f"stage {self.name!r}: knowledge: expected terms, got {term!r} for {name!r}; write "
                    "kdx.Term(name, weight=..., option=value)"
                )
        if isinstance(self.teachers, str):
            raise PlanError(
                f"stage {self.name!r}: teachers: expected a tuple of names, got {self.teachers!r}; write "
                f"({self.teachers!r},)"
            )
        if not isinstance(self.starts, Mapping):
            raise PlanError(
                f"stage {self.name!r}: starts: expected a mapping, got {self.starts!r}; write "
                '{"teacher": "stage"}, or start="stage" for the student'
            )
        if "student" in self.starts and self.start is not None:
            raise PlanError(f"stage {self.name!r}: start and starts['student'] both say what the student begins with")

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages that must be finished first."""
        made_from = self.model.needs if isinstance(self.model, Structure) else ()
        named = (*self.teachers, *([self.start] if self.start else []), *self.starts.values(), *made_from)
        return tuple(dict.fromkeys(split_name(each)[0] for each in named))

    @property
    def begins_with(self) -> str | None:
        """The stage, or ``stage:model``, whose weights the student begins with; None: new ones, or its structure's."""
        return self.start or self.starts.get("student")


def in_order(stages: Sequence[Stage]) -> list[Stage]:
    """Stages so that each comes after those it needs; the given order is kept where it is one.

    Raises:
        PlanError: two stages have one name, a stage needs one that there is not, or stages need each other.

    Example:
        >>> net = Ref("mlp")
        >>> taught = Stage("distilled", "distilled", net, teachers=("teacher",))
        >>> [stage.name for stage in in_order([taught, Stage("teacher", "teacher", net)])]
        ['teacher', 'distilled']
    """
    named: dict[str, Stage] = {}
    for stage in stages:
        if stage.name in named:
            raise PlanError(f"two stages are named {stage.name!r}; every stage needs a name of its own")
        named[stage.name] = stage
    for stage in stages:
        for need in stage.needs:
            if need not in named:
                what = "teacher" if need in {split_name(each)[0] for each in stage.teachers} else "stage"
                raise PlanError(f"stage {stage.name!r} names an unknown {what} {need!r}; {nearest(need, named)}")
    try:
        TopologicalSorter({stage.name: stage.needs for stage in stages}).prepare()
    except CycleError as error:
        raise PlanError(f"stages need each other in a circle: {' needs '.join(reversed(error.args[1]))}") from None
    done: dict[str, Stage] = {}

    def finish(stage: Stage) -> None:
        if stage.name not in done:
            for need in stage.needs:
                finish(named[need])
            done[stage.name] = stage

    for stage in stages:
        finish(stage)
    return list(done.values())
