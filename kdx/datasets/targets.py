"""Targets of all rows of a data set: one tensor, or for several heads a mapping of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["Targets", "put_rows", "rows_of", "same_targets", "take_rows"]

Targets = Tensor | Mapping[str, Tensor]
"""One tensor ``[N, ...]``, or head -> tensor."""


def take_rows(targets: Any, rows: Any) -> Any:
    """Some rows of targets, in every head."""
    if isinstance(targets, Mapping):
        return {name: each[rows] for name, each in targets.items()}
    return targets[rows]


def put_rows(targets: Any, rows: Tensor, values: Any) -> None:
    """Copies some rows of ``values`` into the same places of ``targets``, in every head."""
    if isinstance(targets, Mapping):
        for name, each in targets.items():
            each[rows] = values[name][rows]
        return
    targets[rows] = values[rows]


def rows_of(targets: Any) -> int:
    """The number of rows."""
    return len(next(iter(targets.values()))) if isinstance(targets, Mapping) else len(targets)


def same_targets(one: Any, other: Any) -> bool:
    """Whether two targets are the same, in every head; NaN is the same as NaN."""
    if isinstance(one, Mapping) or isinstance(other, Mapping):
        named = isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys()
        return named and all(same_targets(one[name], other[name]) for name in one)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    both_nan = one.isnan() & other.isnan() if one.is_floating_point() else False
    return bool(((one == other) | both_nan).all())
