"""Tags: what a component declares about itself, so that the checks know what applies to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from kdx.batch import Batch
from kdx.ref import Ref, RefLike

__all__ = ["KnowledgeTags", "SchemeTags", "StudentTags", "TaskTags"]

Shapes = Mapping[str, tuple[int, ...]]
"""Tap -> shape of one sample's feature, without the batch dimension."""


@dataclass(frozen=True, kw_only=True)
class KnowledgeTags:
    """Properties of a knowledge component, and the inputs that it is tried on.

    The first four may also be attributes of the component; a value given here takes precedence, None asks the
    component.

    Args:
        zero_when_equal: the loss and its gradient are 0 where the student's features equal the teacher's; False.
        batch_order_invariant: the order of the samples changes nothing; True.
        needs_index: it keeps something per sample and reads ``batch.index``; False.
        mean_over_samples: its loss is a mean over what it counts, so that the losses of parts of a batch add up to that
            of the whole; True, but False for relations between samples, and for statistics of the batch.
        student_shapes: shapes of the student's taps that are not the default: ``(classes,)`` for ``logits``, else
            ``(3, 4, 4)``. A glob stands for two layers of its shape.
        teacher_shapes: the same for the teacher.
        rows: samples in a batch.
        classes: number of classes; targets are below it.
        samples: ``batch.index`` is below this.
        inputs: ``rows -> (student, teacher, batch)`` with float64 features, for components that random normal numbers
            do not suit; every call must give the same numbers.
    """

    zero_when_equal: bool | None = None
    batch_order_invariant: bool | None = None
    needs_index: bool | None = None
    mean_over_samples: bool | None = None
    student_shapes: Shapes = field(default_factory=dict)
    teacher_shapes: Shapes = field(default_factory=dict)
    rows: int = 6
    classes: int = 5
    samples: int = 32
    inputs: Callable[[int], tuple[Mapping[str, Tensor], Mapping[str, Tensor], Batch]] | None = None

    def resolved(self, component: object) -> KnowledgeTags:
        """The same with every None answered by the component's attribute or the default."""
        defaults = {
            "zero_when_equal": False,
            "batch_order_invariant": True,
            "needs_index": False,
            "mean_over_samples": getattr(component, "kind", None) != "relation",
        }
        said: dict[str, Any] = {
            name: bool(default if (own := getattr(component, name, None)) is None else own)
            for name, default in defaults.items()
            if getattr(self, name) is None
        }
        return replace(self, **said)


@dataclass(frozen=True, kw_only=True)
class SchemeTags:
    """The data and the optimizer that a scheme is tried with.

    Args:
        data: a few batches, as a list; None takes those of :func:`kdx.testing.toy_batches`, which suit
            :func:`kdx.testing.toy_model`.
        optimizer: for the checks that train, see :data:`kdx.training.OptimizerSpec`.
        mean_over_samples: its terms are means over what they count, so that those of parts of a batch add up to those
            of the whole. Say False where samples of a batch are compared or paired, where a statistic of the batch
            enters, and where every call draws anew.
    """

    data: Sequence[Any] | None = None
    optimizer: RefLike = field(default_factory=lambda: Ref("AdamW", lr=0.01))
    mean_over_samples: bool = True


@dataclass(frozen=True, kw_only=True)
class StudentTags:
    """The teacher that a derivation of students is tried with.

    Args:
        teacher: makes it, with the same weights every time; None takes :func:`kdx.testing.toy_teacher`.
        inputs: an example of what it takes, two samples or more; None takes images ``[2, 1, 8, 8]``.
        data: a few batches, as a list, that a derivation with ``needs_data`` looks at, as training rows and as held-out
            ones; None takes those of :func:`kdx.testing.toy_batches`, which suit the toy teacher.
        task: of the data; None takes ``classification``.
        fewer_parameters: whether the smallest student has fewer parameters than the teacher. Say False where bits or
            zeros make it smaller, or where parameters are added, as the step sizes of a quantiser.
        frozen: names, or globs, of the parameters that an edit keeps from being trained; all others get a gradient.
    """

    teacher: Callable[[], nn.Module] | None = None
    inputs: Any = None
    data: Sequence[Any] | None = None
    task: Callable[..., Any] | None = None
    fewer_parameters: bool = True
    frozen: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaskTags:
    """The data that a task is tried with.

    Args:
        rows: samples in a batch, at least 3.
        classes: number of classes, labels or quantities.
        inputs: ``rows -> (outputs, targets)`` with float32 outputs; every call must give the same numbers, and targets
            can be sliced along their first dimension. None draws what :attr:`kdx.Task.responses` says: targets are
            class numbers, 0 and 1 of ``Form.BERNOULLI`` or floats of ``Form.VALUES``, some without a label; outputs
            are ``[rows, C]``, or ``[rows, C, 3, 2]`` and ``[rows, 4, C]`` of a task with ``class_dim``.
    """

    rows: int = 12
    classes: int = 5
    inputs: Callable[[int], tuple[Tensor, Any]] | None = None
