"""Knowledge that is one divergence of two answers, by the op that suits how each is held."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from kdx.batch import IGNORE, Batch
from kdx.capture import Captured
from kdx.features.operands import check_choice
from kdx.knowledge.cross_entropy_beside import CrossEntropyBeside
from kdx.knowledge.response import Outputs, Response
from kdx.linear_logits import LinearLogits
from kdx.ops import SparseTargets, linear_kl, softmax_kl, topk_kl
from kdx.ranges import check_number

__all__ = ["Divergence", "Tail", "check_tail", "divergence_between", "linear_call"]

Tail = Literal["bucket", "even", "renormalise", "drop"]
"""The classes that a store did not keep, see :func:`kdx.ops.topk_kl`."""


class Divergence(Response):
    """Base of knowledge that takes one divergence of the softmaxes of both sides, however their logits are held.

    The answers are tensors, hidden states and a head (:class:`kdx.LinearLogits`), or a few classes of each row
    (:class:`kdx.ops.SparseTargets`). A subclass says in :meth:`numbers` which divergence it is.

    Args:
        temperature: T > 0.
        tail: see :func:`kdx.ops.topk_kl`.
        backend: kernel backend, ``"auto"`` chooses.
        **options: of :class:`kdx.knowledge.Response`.
    """

    takes_held = True
    takes_weight = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # a subclass with a loss of its own, written before there were weights in calls
        cls.takes_weight = cls.compare is Divergence.compare and cls.forward is Divergence.forward

    def __init__(self, *, temperature: float, tail: Tail, backend: str, **options: Any) -> None:
        super().__init__(**options)
        self.temperature = check_number("temperature", temperature, above=0)
        self.tail: Tail = tail
        self.backend = backend
        check_tail(tail, str(self.numbers.get("divergence", "forward")))

    @property
    @abstractmethod
    def numbers(self) -> dict[str, Any]:
        """The divergence and its numbers, as :func:`divergence_between` takes them, but for the temperature."""

    def takes_beside(self, student: Captured, teacher: Captured) -> bool:
        """Whether a cross-entropy of the same outputs and labels can be computed along (``beside=`` of a call)."""
        if self.student_taps != (self.responses.tap,) or self.responses.taught is not None:
            return False
        ours, theirs = self._answer(student, self.student_taps[0]), self._answer(teacher, self.teacher_taps[0])
        if not isinstance(ours, LinearLogits) or self.vocabulary not in (None, ours.shape[-1]):
            return False
        # elements without a label that the teacher teaches all the same are other rows than those of the labels
        void = self.responses.void if self.void is None else self.void
        return void is True or (void is False and not isinstance(theirs, SparseTargets))

    @override
    def forward(
        self,
        student: Captured,
        teacher: Captured,
        batch: Batch,
        *,
        beside: CrossEntropyBeside | None = None,
        weight: float | Tensor | None = None,
    ) -> Tensor:
        outputs = self.outputs(student, teacher, batch)
        if beside is None and weight is None:
            return self.compare(outputs)  # of a subclass, which need not know of either
        return self.compare(outputs, beside, weight)

    @override
    def compare(
        self, outputs: Outputs, beside: CrossEntropyBeside | None = None, weight: float | Tensor | None = None
    ) -> Tensor:
        numbers = {"temperature": self.temperature, "tail": self.tail, "backend": self.backend} | self.numbers
        return divergence_between(outputs, beside=beside, weight=weight, **numbers)

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def check_tail(tail: str, divergence: str) -> None:
    """Checks the option ``tail`` of a component.

    Raises:
        ValueError: there is no such tail, or the divergence has none of it.
    """
    check_choice("tail", tail, get_args(Tail))
    if divergence != "forward" and tail not in ("bucket", "even"):
        raise ValueError(f"tail: {divergence} divergences take 'bucket' or 'even', got {tail!r}")


def divergence_between(
    outputs: Outputs,
    *,
    temperature: float,
    divergence: Literal["forward", "reverse", "jsd"] = "forward",
    beta: float = 0.5,
    skew: float = 0.0,
    tail: Tail = "bucket",
    backend: str = "auto",
    beside: CrossEntropyBeside | None = None,
    weight: float | Tensor | None = None,
) -> Tensor:
    """The mean divergence of the elements that count, times T^2; a student held as hidden states and a head is
    compared without its logits being made whole.

    Args:
        outputs: of both sides, each a tensor or :class:`kdx.LinearLogits`, the teacher's also
            :class:`kdx.ops.SparseTargets`.
        temperature: see :func:`kdx.ops.softmax_kl`, as the others.
        divergence: likewise.
        beta: likewise.
        skew: likewise.
        tail: see :func:`kdx.ops.topk_kl`.
        backend: likewise.
        beside: a cross-entropy to compute along, of a student held as hidden states and a head.
        weight: of the term in a step that trains: the loss comes multiplied by it, and of logits that are made whole
            nothing but the gradient is kept for it, so that it has no second derivative. None: neither.
    """
    if weight is not None and isinstance(outputs.student, LinearLogits):
        same: dict[str, Any] = {"divergence": divergence, "beta": beta, "skew": skew, "tail": tail, "backend": backend}
        return weight * divergence_between(outputs, temperature=temperature, beside=beside, **same)
    student, teacher, mask = outputs.student, outputs.teacher, outputs.mask
    numbers: dict[str, Any] = {"temperature": temperature, "divergence": divergence, "beta": beta, "skew": skew}
    numbers["backend"] = backend
    if isinstance(student, LinearLogits):
        if beside is not None:
            return _with_cross_entropy(outputs, beside, tail, numbers)
        call = linear_call(student, teacher, vocabulary=outputs.vocabulary, tail=tail)
        found: Tensor = linear_kl(**call, mask=mask, num_items=_items(teacher, mask), **numbers)
        return found
    if isinstance(teacher, SparseTargets):
        if weight is not None:
            by, weight = (weight, None) if isinstance(weight, float) else (1.0, weight)
            numbers |= {"scale": by, "once_differentiable": True}
        found = topk_kl(student, teacher, tail=tail, mask=mask, num_items=_items(teacher, mask), **numbers)
        return found if weight is None else weight * found
    if isinstance(teacher, LinearLogits):
        teacher = (teacher if outputs.vocabulary is None else teacher.of_classes(outputs.vocabulary)).dense()
    if weight is not None:
        numbers |= {"scale": weight, "once_differentiable": True}
    return softmax_kl(student, teacher, mask=mask, dim=outputs.dim, **numbers)


def _with_cross_entropy(outputs: Outputs, beside: CrossEntropyBeside, tail: Tail, numbers: dict[str, Any]) -> Tensor:
    """The divergence, with the cross-entropy left in ``beside``; labels say what counts, but where all rows do."""
    of_kl, of_ce = beside.weights
    if isinstance(of_kl, Tensor):
        of_kl = torch.where(of_kl == 0, 1.0, of_kl)  # a term that weighs nothing now
    labels, by_labels = beside.labels, outputs.mask is not None
    sparse = isinstance(outputs.teacher, SparseTargets)
    kl, beside.loss = linear_kl(
        **linear_call(outputs.student, outputs.teacher, vocabulary=outputs.vocabulary, tail=tail),
        labels=labels,
        mask_by_labels=by_labels,
        num_items=(labels != IGNORE).sum().clamp(min=1) if sparse else None,
        return_terms=True,
        weights=(of_kl, of_ce),
        **numbers,
    )
    value: Tensor = kl / of_kl
    return value


def linear_call(student: LinearLogits, teacher: Any, *, vocabulary: int | None = None, tail: Tail) -> dict[str, Any]:
    """The arguments of :func:`kdx.ops.linear_kl` that say what is compared."""
    found: dict[str, Any] = {"vocabulary": vocabulary, "student": student.hidden}
    sides = {"student": student} | ({"teacher": teacher} if isinstance(teacher, LinearLogits) else {})
    for name, side in sides.items():
        found |= {f"{name}_{part}": getattr(side, part) for part in ("weight", "bias", "scale", "softcap")}
    found["teacher"] = teacher.hidden if isinstance(teacher, LinearLogits) else teacher
    return found | ({"tail": tail} if isinstance(teacher, SparseTargets) else {})


def _items(teacher: Any, mask: Tensor | None) -> Tensor | int | None:
    """The rows that the mean is over, where the op would leave out those of which a store has no class."""
    if not isinstance(teacher, SparseTargets):
        return None
    return math.prod(teacher.ids.shape[:-1]) or None if mask is None else mask.sum().clamp(min=1)
