"""Awkward inputs of kernels: how they lie in memory, and values that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

__all__ = ["AWKWARD", "LAYOUTS"]


def _sliced(x: Tensor) -> Tensor:
    wide = x.new_full((x.shape[0], 2 * x.shape[1] + 3), math.nan)
    wide[:, 1 : x.shape[1] + 1] = x
    return wide[:, 1 : x.shape[1] + 1]


def _unaligned(x: Tensor) -> Tensor:
    flat = x.new_full((x.numel() + 1,), math.nan)
    flat[1:] = x.reshape(-1)
    return flat[1:].view(x.shape)


def _every_other(x: Tensor) -> Tensor:
    wide = x.new_full((x.shape[0], 2 * x.shape[1]), math.nan)
    wide[:, ::2] = x
    return wide[:, ::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as a slice of a wider one": _sliced,
    "at an unaligned address": _unaligned,
    "with gaps between its columns": _every_other,
    "stored column by column": lambda x: x.t().contiguous().t(),
}
"""How a tensor ``[N, C]`` is stored -> the same numbers stored so."""

_INF, _NAN, _ALL = math.inf, math.nan, slice(None)
AWKWARD: dict[str, list[tuple[int, int | slice, int | slice, float]]] = {
    "-inf in a column of both": [(0, _ALL, 3, -_INF), (1, _ALL, 3, -_INF)],
    "-inf in the first tensor": [(0, 1, 3, -_INF)],
    "-inf in the second tensor": [(1, 1, 3, -_INF)],
    "inf in the first tensor": [(0, 1, 3, _INF)],
    "inf in the second tensor": [(1, 1, 3, _INF)],
    "NaN in the first tensor": [(0, 1, 3, _NAN)],
    "NaN in the second tensor": [(1, 1, 3, _NAN)],
    "a row of -inf": [(0, 1, _ALL, -_INF)],
}
"""Case -> entries to set, as (tensor, rows, columns, value)."""
