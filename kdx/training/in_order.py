"""The training rows in order, for hooks that look at them between two epochs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader

from kdx.batch import Batch
from kdx.training.batches import looking_at, set_epoch

__all__ = ["InOrder"]


class InOrder:
    """Gives the training rows in order, within its block and as often as it is called; the run's own place stays.

    Of a :class:`torch.utils.data.DataLoader` these are the rows of its data set (of a stream over a data set: of that),
    from the first to the last, in batches of the loader's size, as the data set gives them in the epoch that begins
    next, augmented if it augments. Another iterable is iterated once more.

    Args:
        train: what :func:`kdx.fit` trains on.
        device: where batches go.
        epoch: that a data set which counts epochs is told.
    """

    def __init__(self, train: Iterable[Any], device: torch.device, epoch: int) -> None:
        self.train = train
        self.device = device
        self.epoch = epoch
        self._given: list[Any] = []

    def __enter__(self) -> InOrder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for batches in self._given:  # which may not go on after the block, as they hold random states
            batches.close()

    def __call__(self) -> Iterator[Batch]:
        """The batches, from the first row on.

        Raises:
            ValueError: the training data run only once, so that looking at them would take them from the run.
        """
        if isinstance(self.train, Iterator):
            raise ValueError(
                "the training data are an iterator, which runs only once, so a hook cannot look at their rows; give "
                "fit a loader, or a list of batches"
            )
        found = self._batches()
        self._given.append(found)
        return found

    def _batches(self) -> Iterator[Batch]:
        loader = _sequential(self.train)
        set_epoch(loader, self.epoch)
        with looking_at(loader) as batches:
            for item in batches:
                yield Batch.of(item).to(self.device)


def _sequential(train: Iterable[Any]) -> Iterable[Any]:
    """A loader of the same rows in the order of their data set; the iterable itself where it has none."""
    data: Any = getattr(train, "dataset", None)
    if not _has_rows(data):
        data = getattr(data, "dataset", None)  # of a stream
    if not isinstance(train, DataLoader) or not _has_rows(data):
        return train
    size = train.batch_size or getattr(train.batch_sampler, "batch_size", None) or 1
    return DataLoader(data, batch_size=size, collate_fn=train.collate_fn)


def _has_rows(data: Any) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")
