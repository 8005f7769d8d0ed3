"""Facts about the samples of the data set behind a loader: how many there are, and of which classes."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdx.batch import IGNORE
from kdx.datasets.view import View
from kdx.training.batches import data_of

__all__ = ["dataset_labels", "dataset_size"]


def dataset_size(loader: Iterable[Any]) -> int | None:
    """Number of samples that ``batch.index`` can name: the length of the data set behind a loader.

    Views and subsets keep the row numbers of the whole, so the data set inside them (their ``dataset``) counts.

    Returns:
        The number, or None where the loader has no data set, or one without a length.
    """
    data = data_of(loader)
    return len(data) if data is not loader and isinstance(data, Sized) else None


def dataset_labels(loader: Iterable[Any]) -> Tensor | None:
    """Class of every sample that ``batch.index`` can name, as the training rows show it.

    A label that a view hides stays hidden, and so does that of a row that the loader does not give.

    Returns:
        int64 ``[samples]``, ``-100`` where the class is unknown; None where no data set behind the loader has
        ``targets``, one integer per sample.
    """
    samples, found = dataset_size(loader), _rows(getattr(loader, "dataset", None))
    if samples is None or found is None:
        return None
    rows, targets = found
    labels = torch.full((samples,), IGNORE)
    labels[rows] = targets
    return labels


def _rows(data: Any) -> tuple[Tensor, Tensor] | None:
    """The ``batch.index`` of every sample of a data set, and its class; None where it does not say."""
    inner, indices = getattr(data, "dataset", None), getattr(data, "indices", None)
    if not isinstance(inner, Dataset):
        targets = _classes(data, len(data)) if isinstance(data, Sized) else None
        return None if targets is None else (torch.arange(len(targets)), targets)
    found = _rows(inner)
    if indices is None:  # a stream over the samples of the data set inside
        return found
    places = torch.as_tensor(indices)
    own = _classes(data, len(places))
    if isinstance(data, View):  # it counts the rows of the data set right inside
        targets = own if found is None or own is not None else found[1][places]
        return None if targets is None else (places, targets)
    return None if found is None else (found[0][places], found[1][places])


def _classes(data: Any, samples: int) -> Tensor | None:
    targets = getattr(data, "targets", None)
    if not isinstance(targets, Tensor | list | tuple):
        return None
    try:
        classes = torch.as_tensor(targets)
    except (TypeError, ValueError):  # names, boxes
        return None
    integers = not classes.is_floating_point() and classes.dtype is not torch.bool
    return classes.long() if integers and classes.shape == (samples,) else None
