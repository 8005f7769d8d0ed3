"""Whether class numbers are those of the outputs that they are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from kdx.batch import IGNORE

__all__ = ["check_class_numbers"]


def check_class_numbers(
    who: str, targets: Tensor, classes: int, *, ignored: int = IGNORE, row: str = "row", waits: bool = True
) -> None:
    """Checks that every target is a class of the outputs, or says that there is no label.

    Args:
        who: whose targets they are, with which the message begins.
        targets: int64 of any shape.
        classes: C, the number of classes.
        ignored: the target of what has no label.
        row: what the first axis of the targets counts, for the message.
        waits: whether to look at values on a device too, which stops its stream.

    Raises:
        TypeError: targets of another dtype: uint8 cannot say -100, and masks where it is to be an index.
        ValueError: one is neither in ``0 .. C - 1`` nor ``ignored``; the message says which, and where.

    Example:
        >>> import torch
        >>> check_class_numbers("task", torch.tensor([0, 2, -100]), 3)
        >>> check_class_numbers("task", torch.tensor([0, 3]), 3)
        Traceback (most recent call last):
            ...
        ValueError: task: expected classes 0 .. 2, as the outputs have 3 (or -100 for no label), got 3 in row 1; \
give the model as many outputs as the data have classes, or number the classes from 0
    """
    if targets.dtype != torch.int64:
        raise TypeError(
            f"{who}: expected class numbers of int64 as targets, got {targets.dtype}; give targets.long(), and "
            f"{ignored} for what has no label"
        )
    if not targets.numel() or torch.compiler.is_compiling() or not (waits or targets.device.type == "cpu"):
        return
    low, high = targets.aminmax()
    if int(low) >= 0 and int(high) < classes:
        return
    places = (((targets < 0) | (targets >= classes)) & (targets != ignored)).nonzero()
    if len(places):
        first = places[0].tolist()
        where = f"{row} {first[0]}" + (f" and {len(places) - 1} more" if len(places) > 1 else "")
        raise ValueError(
            f"{who}: expected classes 0 .. {classes - 1}, as the outputs have {classes} (or {ignored} for no label), "
            f"got {int(targets[tuple(first)])} in {where}; give the model as many outputs as the data have classes, or "
            "number the classes from 0"
        )
