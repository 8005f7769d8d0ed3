"""Checks of a loss's operands and options, and the precision that it computes in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor

from kdx.errors import nearest

__all__ = ["Variant", "check_choice", "check_same_outputs", "check_same_rows", "check_same_shape", "in_full_precision"]

Variant = Literal["paper", "code"]
"""Which of the two is computed where a paper and its authors' code differ."""

OTHER_TOKENIZER = (
    "of tokenizers that differ, whose tokens are no classes in common, take uld or alm, which learn from the teacher's "
    "own tokenisation of the same texts"
)

F = TypeVar("F", bound=Callable[..., Tensor])


def in_full_precision(function: F) -> F:
    """Makes a loss compute in float32 (float64 when an operand is), whatever autocast or the operands' dtype say.

    A product of two features or a sum over a batch in half precision costs more digits than the loss has.

    Args:
        function: a loss whose first two parameters are ``student`` and ``teacher``.
    """

    @functools.wraps(function)
    def wrapper(student: Tensor, teacher: Tensor, *args: Any, **options: Any) -> Tensor:
        double = torch.float64 in (student.dtype, teacher.dtype)
        dtype = torch.float64 if double else torch.float32
        with torch.autocast(student.device.type, enabled=False):
            return function(student.to(dtype), teacher.to(dtype), *args, **options)

    return cast(F, wrapper)


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raises unless both have one shape.

    Raises:
        ValueError: they have not.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher: expected the student's shape {list(student.shape)}, got {list(teacher.shape)}; both need the "
            "same rows and classes: tap layers of one width, or use knowledge that has an adapter"
        )


def check_same_outputs(student: Tensor, teacher: Tensor, dim: int | None = None, *, vocabulary: bool = False) -> None:
    """Raises unless two outputs are of the same rows and classes.

    Args:
        student: ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``.
        teacher: of the same shape.
        dim: the axis of the classes; None: the last of three, else axis 1.
        vocabulary: whether what compares them has the option of that name.

    Raises:
        ValueError: they are not; where only the classes differ the message says what can be done.
    """
    if student.shape == teacher.shape:
        return
    ours, theirs = list(student.shape), list(teacher.shape)
    axis = (2 if len(ours) == 3 else 1) if dim is None else dim % max(1, len(ours))
    elements = [shape[:axis] + shape[axis + 1 :] for shape in (ours, theirs)]
    if vocabulary and len(ours) == len(theirs) == 3 and ours[0] == theirs[0] and ours[3 - axis] != theirs[3 - axis]:
        raise ValueError(
            f"teacher: expected outputs at the student's {ours[3 - axis]} places, {ours}, got {theirs}; let both see "
            f"the same tokens; {OTHER_TOKENIZER}"
        )
    if axis >= len(ours) or len(ours) != len(theirs) or elements[0] != elements[1]:
        check_same_shape(student, teacher)
    picked = ", ".join([":"] * axis + ["classes"])
    padded = (
        "; of one vocabulary that the models pad to different sizes write vocabulary=n, the number of its tokens: the "
        f"first n of both are compared; {OTHER_TOKENIZER}"
    )
    raise ValueError(
        f"teacher: expected the student's shape {ours}, got {theirs}: {ours[axis]} classes and {theirs[axis]} on axis "
        f"{axis} cannot be compared one by one; give both models the same classes, pick in the teacher those of the "
        f"student (teacher_output=lambda out: out[{picked}]), or take knowledge that compares none: a relation, as rkd "
        f"or sp, or a feature, as hint{padded if vocabulary else ''}"
    )


def check_same_rows(student: Tensor, teacher: Tensor) -> None:
    """Raises unless both hold one row per sample of the same batch.

    Raises:
        ValueError: a number without a batch dimension, or different numbers of samples.
    """
    if student.dim() < 2 or teacher.dim() < 2 or student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"student and teacher: expected features [N, ...] of the same N samples, got {list(student.shape)} and "
            f"{list(teacher.shape)}; relations between samples compare the same batch in both models"
        )


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raises unless an option has one of its values.

    Raises:
        ValueError: it has not; the nearest values are listed.
    """
    known = tuple(known)
    if value not in known:
        raise ValueError(f"{name}: there is no {value!r}; {nearest(value, known)}")
