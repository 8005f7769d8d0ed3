"""The sides of linear_kl as their arguments give them: checked, and with their rows along one dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdx.ops._linear_kl.call import Side

__all__ = ["check_apart", "check_floating", "in_autocast", "side_of", "vocabulary_of", "without_a_head"]


def check_floating(name: str, x: Tensor) -> None:
    """Checks that it is a tensor of numbers with a last dimension.

    Raises:
        TypeError: it is not a floating-point tensor.
        ValueError: it is a number.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name}: expected floating-point numbers, got {x.dtype}")
    if x.dim() == 0:
        raise ValueError(f"{name}: expected a last dimension, got a number")


def without_a_head(name: str, weight: Tensor | None, bias: Tensor | None, scale: float, softcap: float | None) -> None:
    """Checks that nothing of a head is given.

    Raises:
        ValueError: something is; the message names it.
    """
    given = {"weight": weight, "bias": bias, "softcap": softcap, "scale": None if scale == 1 else scale}
    for what, value in given.items():
        if value is not None:
            raise ValueError(f"{name}_{what}: belongs to a head, and {name} holds no hidden states that go through one")


def side_of(
    name: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: float, softcap: float | None
) -> Side:
    """One side, its rows along one dimension.

    Raises:
        ValueError: the head does not fit the hidden states, or its scale or softcap is out of range.
        TypeError: the weight is not a floating-point tensor.
    """
    if weight is None:
        without_a_head(name, None, bias, scale, softcap)
        return Side(x.reshape(-1, x.shape[-1]), None, None, 1.0, 0.0)
    check_floating(f"{name}_weight", weight)
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"{name}_weight: expected [V, {x.shape[-1]}] for hidden states of {x.shape[-1]} numbers, as the weight of "
            f"nn.Linear is, got {list(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{name}_bias: expected [{weight.shape[0]}], one per class, got {list(bias.shape)}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(
            f"{name}_softcap: expected a number above 0, or None where logits are not capped; got {softcap}"
        )
    if not -float("inf") < scale < float("inf"):  # math.isfinite would break a compiled graph
        raise ValueError(f"{name}_scale: expected a finite number, got {scale}")
    for part in (weight, bias):
        if part is not None and part.device != x.device:
            raise ValueError(f"{name}: is on {x.device}, its head on {part.device}; move one of them")
    return Side(x.reshape(-1, x.shape[-1]), weight, bias, float(scale), float(softcap or 0.0))


def check_apart(teacher: Side, device: torch.device) -> None:
    """Checks that the teacher asks for no gradient and lies on the student's device.

    Raises:
        ValueError: it does not.
    """
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in teacher[:3]):
        raise ValueError("teacher: gets no gradient here; pass its tensors detached, or run it under torch.no_grad()")
    if teacher.hidden.device != device:
        raise ValueError(f"teacher: is on {teacher.hidden.device}, the student on {device}; move one of them")


def vocabulary_of(vocabulary: int | None, own: int, other: int | None) -> int:
    """How many classes are compared, of those of the student and the teacher (None: it has whatever it lists).

    Raises:
        ValueError: the sides have different numbers and none is given, or one that a side does not have.
    """
    least = own if other is None else min(own, other)
    if vocabulary is None:
        if other not in (own, None):
            raise ValueError(
                f"teacher: has {other} classes, the student {own}; where the first classes are the same and the others "
                "padding, give their number as vocabulary=; tokenizers that differ share no classes "
                "(the components uld and alm learn from such a teacher)"
            )
        return own
    if isinstance(vocabulary, bool) or not isinstance(vocabulary, int) or not 0 < vocabulary <= least:
        raise ValueError(
            f"vocabulary: expected a number of classes that both sides have, 1 to {least} (the student has {own}"
            f"{'' if other is None else f', the teacher {other}'}), got {vocabulary!r}"
        )
    return vocabulary


def in_autocast(side: Side) -> Side:
    """The operands in the dtype that torch.autocast multiplies in, where it is on; the logits stay float32."""
    device = side.hidden.device.type
    if side.weight is None or not torch.is_autocast_enabled(device):
        return side
    dtype = torch.get_autocast_dtype(device)
    hidden, weight = (x.to(dtype) if x.dtype == torch.float32 else x for x in (side.hidden, side.weight))
    return side._replace(hidden=hidden, weight=weight)
