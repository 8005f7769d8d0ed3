"""The contract of a data set: the attributes and rows that an experiment needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdx.batch import IGNORE

__all__ = ["check_dataset"]


def check_dataset(data: Any) -> None:
    """Checks the attributes of a data set and its first row.

    Args:
        data: a map-style data set with ``len``, whose rows are ``(input, target)``. It has ``targets`` (int64, ``[N]``,
            ``-100`` without a label), ``num_classes`` and ``input_shape``, the shape of every input.

    Raises:
        TypeError: an attribute is missing or of another type.
        ValueError: the attributes and the first row do not agree.
    """
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise TypeError(f"expected a map-style data set, with a length and numbered rows, got {_shown(data)}")
    if not (rows := len(data)):
        raise ValueError("expected a row at least, got none")
    classes, shape, targets = (getattr(data, name, None) for name in ("num_classes", "input_shape", "targets"))
    if not isinstance(classes, int):
        raise TypeError(f"num_classes: expected the number of classes, an int, got {classes!r}")
    if not isinstance(shape, tuple) or not all(isinstance(size, int) for size in shape):
        raise TypeError(f"input_shape: expected the shape of one input, a tuple of ints, got {shape!r}")
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64 or targets.dim() != 1:
        raise TypeError(f"targets: expected the class of every row, an int64 tensor [N], got {_shown(targets)}")
    if len(targets) != rows:
        raise ValueError(f"targets: expected one for each of its {rows} rows, got {len(targets)}")
    labels = targets[targets != IGNORE]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"targets: expected classes 0 .. {classes - 1} (or {IGNORE}, no label), got {int(labels.min())} .. "
            f"{int(labels.max())}"
        )
    _check_row(data[0], shape, int(targets[0]))


def _check_row(row: Any, shape: tuple[int, ...], target: int) -> None:
    if not isinstance(row, tuple | list) or len(row) != 2:
        raise TypeError(f"row 0: expected a pair (input, target), got {_shown(row)}")
    if not isinstance(row[0], Tensor):
        raise TypeError(
            f"row 0: expected a tensor as input, got {type(row[0]).__name__}; torch.as_tensor makes one of arrays"
        )
    if tuple(row[0].shape) != shape:
        raise ValueError(f"row 0: expected an input of input_shape {list(shape)}, got {list(row[0].shape)}")
    if int(row[1]) != target:
        raise ValueError(f"row 0: its target is {int(row[1])}, in targets it is {target}")


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} with shape {list(value.shape)}"
    return f"{type(value).__name__} {value!r}"[:80]
