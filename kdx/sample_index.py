"""Whether ``batch.index`` names the samples of a data set, for what is stored per sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["check_index"]


def check_index(who: str, index: Any, rows: int, *, samples: int | None = None, targets: Any = None) -> None:
    """Checks an index of samples: its dtype and shape always, its values where the CPU has them.

    A sample may come twice in a batch, as samplers with replacement draw it; two rows with one index and different
    targets are two samples.

    Args:
        who: what is stored per sample, with which the message begins.
        index: ``batch.index``; on a GPU its values are not looked at, as that would stop the stream.
        rows: N, the rows of the batch.
        samples: how many there are; None: nobody knows.
        targets: those of the batch.

    Raises:
        TypeError: no tensor of int64.
        ValueError: another shape than ``[N]``, a number that is negative or not below ``samples``, or one number for
            samples with different targets.

    Example:
        >>> check_index("a store", torch.tensor([0, 2, 0]), 3, samples=3)
        >>> check_index("a store", torch.tensor([-1, 0]), 2)
        Traceback (most recent call last):
            ...
        ValueError: a store: batch.index numbers the samples from 0, and holds -1 (row 0); give each sample its \
position in the training set
    """
    way = "give each sample its position in the training set"
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        came = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"{who}: expected batch.index of int64, got {came}; {way}")
    if list(index.shape) != [rows]:
        raise ValueError(f"{who}: expected batch.index of shape [{rows}], got {list(index.shape)}; {way}")
    if index.device.type != "cpu" or torch.compiler.is_compiling() or not rows:
        return
    low, high = (int(end) for end in index.aminmax())
    if low < 0:
        raise ValueError(
            f"{who}: batch.index numbers the samples from 0, and holds {low} (row {int(index.argmin())}); {way}"
        )
    if samples is not None and high >= samples:
        raise ValueError(
            f"{who}: samples is {samples}, but batch.index holds {high}; give the training set's length, or {way[5:]}"
        )
    if not isinstance(targets, Tensor) or targets.device != index.device or len(targets) != rows:
        return
    order = index.argsort(stable=True)
    same = index[order][1:] == index[order][:-1]
    if not bool(same.any()):
        return
    kept = targets[order].reshape(rows, -1)
    differ = ((kept[1:] != kept[:-1]) & ~((kept[1:] != kept[1:]) & (kept[:-1] != kept[:-1]))).any(1)  # NaN is like NaN
    if bool((same & differ).any()):
        place = int((same & differ).nonzero()[0])
        raise ValueError(
            f"{who}: batch.index holds {int(index[order[place]])} for two samples with different targets (rows "
            f"{int(order[place])} and {int(order[place + 1])}); {way}"
        )
