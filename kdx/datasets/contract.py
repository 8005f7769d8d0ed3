"""The contract of a data set: the attributes and rows that an experiment needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdx.batch import IGNORE, Batch
from kdx.datasets.targets import take_rows

__all__ = ["check_dataset"]


def check_dataset(data: Any) -> None:
    """Checks the attributes of a data set and its first row.

    Args:
        data: a map-style data set with ``len``, whose rows are ``(input, target)``. It has ``targets``, those of all
            rows (int64 or float, ``[N, ...]``: class numbers ``[N]``, a class for each pixel or token, 0 and 1 for each
            label, quantities; ``-100`` or NaN without a label), ``num_classes``, the number of classes, labels or
            quantities, and ``input_shape``, the shape of every input. An input is a tensor or, for models that take it
            by name, a mapping of tensors, of which the first has that shape. ``model_options`` names further
            attributes that models need, as ``("vocabulary",)``. For several heads ``targets`` and ``num_classes`` are
            mappings, and so is the target of a row. A row may be a :class:`kdx.Batch` of one sample, with views of its
            own. A data set that is the view of another says ``own_targets = True`` where its targets are its own, as
            the token ids of another tokenizer are, so that a model of this view is trained and judged on them.

    Raises:
        TypeError: an attribute is missing or of another type.
        ValueError: the attributes and the first row do not agree.
    """
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        stream = (
            "; of a stream no rows can be held out, left unlabelled or found again: read it into a list of rows in a "
            "data set of your own (my_data.py:Rows), or train on the stream itself with kdx.fit(..., steps=)"
        )
        raise TypeError(
            f"expected a map-style data set, with a length and numbered rows, got {_shown(data)}"
            f"{stream if hasattr(data, '__iter__') else ''}"
        )
    if not (rows := len(data)):
        raise ValueError("expected a row at least, got none")
    classes, shape, targets = (getattr(data, name, None) for name in ("num_classes", "input_shape", "targets"))
    if isinstance(targets, Mapping):
        if not isinstance(classes, Mapping) or list(classes) != list(targets) or not targets:
            raise TypeError(
                f"num_classes: targets are a mapping with the keys {list(targets)}, so expected one with the same keys "
                f"in their order, got {classes!r}"
            )
        for name, each in targets.items():
            try:
                _check_targets(each, classes[name], rows)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name!r}: {error}") from error
    else:
        _check_targets(targets, classes, rows)
    if not isinstance(shape, tuple) or not all(isinstance(size, int) for size in shape):
        raise TypeError(f"input_shape: expected the shape of one input, a tuple of ints, got {shape!r}")
    if missing := [name for name in getattr(data, "model_options", ()) if not hasattr(data, name)]:
        raise TypeError(f"model_options: it names {missing[0]!r}, which the data set has not")
    _check_row(data[0], shape, take_rows(targets, 0))


def _check_targets(targets: Any, classes: Any, rows: int) -> None:
    """Checks the targets of all rows, of one head if there are several."""
    if not isinstance(classes, int):
        raise TypeError(f"num_classes: expected the number of classes, labels or quantities, an int, got {classes!r}")
    if not isinstance(targets, Tensor) or not (targets.dtype == torch.int64 or targets.is_floating_point()):
        raise TypeError(
            f"targets: expected those of all rows, an int64 tensor [N, ...] of classes or labels or a float one, got "
            f"{_shown(targets)}"
        )
    if targets.dim() < 1:
        raise TypeError(f"targets: expected those of all rows, a tensor [N, ...], got {_shown(targets)}")
    if len(targets) != rows:
        raise ValueError(f"targets: expected one for each of its {rows} rows, got {len(targets)}")
    labels = targets[targets != IGNORE]
    classes = max(classes, 2)  # one output for yes or no
    if not targets.is_floating_point() and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"targets: expected classes 0 .. {classes - 1} (or {IGNORE}, no label), got {int(labels.min())} .. "
            f"{int(labels.max())}"
        )


def _check_row(row: Any, shape: tuple[int, ...], target: Any) -> None:
    if isinstance(row, Batch):  # of one sample, with views of its own
        row = row[:2]
    if not isinstance(row, tuple | list) or len(row) != 2:
        columns = (
            f"; give row[...], row[...] of its columns {', '.join(map(str, list(row)[:10]))}, in a data set of your "
            "own around it, or take the data set hf of kdx-text for texts"
        )
        raise TypeError(
            f"row 0: expected a pair (input, target), got {_shown(row)}{columns if isinstance(row, Mapping) else ''}"
        )
    named = isinstance(row[0], Mapping)
    parts = dict(row[0]) if named else {"": row[0]}
    if wrong := next(((name, each) for name, each in parts.items() if not isinstance(each, Tensor)), None):
        raise TypeError(
            f"row 0: expected a tensor as input{f' {wrong[0]!r}' if named else ''}, got {type(wrong[1]).__name__}; "
            "torch.as_tensor makes one of arrays"
        )
    first = next(iter(parts.values()), None)
    if first is None or tuple(first.shape) != shape:
        found = "an empty mapping" if first is None else list(first.shape)
        raise ValueError(f"row 0: expected an input of input_shape {list(shape)}, got {found}")
    if isinstance(target, Mapping):
        if not isinstance(row[1], Mapping) or list(row[1]) != list(target):
            raise TypeError(f"row 0: expected a target for each of {list(target)}, a mapping, got {_shown(row[1])}")
        for name, each in target.items():
            _check_target(row[1][name], each)
    else:
        _check_target(row[1], target)


def _check_target(given: Any, target: Tensor) -> None:
    found = torch.as_tensor(given)
    if found.shape != target.shape or not torch.allclose(found.double(), target.double(), equal_nan=True):
        raise ValueError(f"row 0: its target is {found.tolist()}, in targets it is {target.tolist()}")


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} with shape {list(value.shape)}"
    return f"{type(value).__name__} {value!r}"[:80]
