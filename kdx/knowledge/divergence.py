"""The divergence of two answers, by the op that suits how each is held."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from torch import Tensor

from kdx.features.operands import check_choice
from kdx.knowledge.response import Outputs
from kdx.linear_logits import LinearLogits
from kdx.ops import SparseTargets, linear_kl, softmax_kl, topk_kl

__all__ = ["Tail", "check_tail", "divergence_between", "linear_call"]

Tail = Literal["bucket", "even", "renormalise", "drop"]
"""The classes that a store did not keep, see :func:`kdx.ops.topk_kl`."""


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
    """
    student, teacher, mask = outputs.student, outputs.teacher, outputs.mask
    numbers: dict[str, Any] = {"temperature": temperature, "divergence": divergence, "beta": beta, "skew": skew}
    numbers["backend"] = backend
    if isinstance(student, LinearLogits):
        call = linear_call(student, teacher, vocabulary=outputs.vocabulary, tail=tail)
        found: Tensor = linear_kl(**call, mask=mask, num_items=_items(teacher, mask), **numbers)
        return found
    if isinstance(teacher, SparseTargets):
        return topk_kl(student, teacher, tail=tail, mask=mask, num_items=_items(teacher, mask), **numbers)
    if isinstance(teacher, LinearLogits):
        teacher = (teacher if outputs.vocabulary is None else teacher.of_classes(outputs.vocabulary)).dense()
    return softmax_kl(student, teacher, mask=mask, dim=outputs.dim, **numbers)


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
