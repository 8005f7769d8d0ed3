"""The number of items that a mean divides by where the caller knows it: those of all micro-batches of a step."""

from __future__ import annotations

from torch import Tensor

__all__ = ["check_num_items"]


def check_num_items(num_items: float | Tensor | None, reduction: str) -> None:
    """Checks that it is one number above 0, and that there is a mean for it; a tensor's value is not read.

    Raises:
        ValueError: it is not, or the reduction divides by nothing.
    """
    if num_items is None:
        return
    if reduction in ("none", "sum"):
        raise ValueError(f"num_items: is what the mean divides by; reduction={reduction!r} divides by nothing")
    if isinstance(num_items, Tensor):
        if num_items.numel() != 1:
            raise ValueError(f"num_items: expected one number, got a tensor {list(num_items.shape)}")
    elif not num_items > 0:
        raise ValueError(f"num_items: expected a number above 0, got {num_items}")
