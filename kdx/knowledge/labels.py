"""Integer labels as masks of the classes, for losses that treat the label's class apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdx.batch import IGNORE
from kdx.class_numbers import check_class_numbers

__all__ = ["label_masks"]


def label_masks(who: str, logits: Tensor, targets: Any, dim: int) -> tuple[Tensor, Tensor]:
    """Where the label's class is in each row of logits, and which rows have a label.

    Args:
        who: the loss that asks, for messages.
        logits: ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``.
        targets: the labels, int64, of that shape without the classes; ``-100`` marks an element without one.
        dim: axis of the classes, from 0.

    Returns:
        Bool ``[R, C]``, with class 0 for a row without a label, and bool ``[R]``; R rows as ``class_rows`` orders them.

    Raises:
        ValueError: no labels, soft ones, those of another shape, or a number that is no class.
    """
    if not isinstance(targets, Tensor):
        raise ValueError(
            f"batch.targets: {who} splits the classes at the label and needs integer labels [N], got "
            f"{type(targets).__name__}; without labels use soft-targets"
        )
    classes = logits.shape[dim]
    elements = logits.shape[:dim] + logits.shape[dim + 1 :]
    if targets.shape != elements or targets.is_floating_point():
        raise ValueError(
            f"targets: expected one label for each element, int64 of shape {list(elements)} for logits of shape "
            f"{list(logits.shape)} with their classes on axis {dim}, got {targets.dtype} of shape "
            f"{list(targets.shape)}; {who} needs integer labels, not probabilities, and class_dim= says where the "
            "classes are"
        )
    check_class_numbers(who, targets, classes, waits=False)
    targets = targets.reshape(-1)
    is_target = torch.zeros(targets.shape[0], classes, dtype=torch.bool, device=logits.device)  # [R, C]
    return is_target.scatter(1, targets.clamp(min=0)[:, None], 1), targets != IGNORE
