"""Rows of a data set as batches that carry the index of every sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdx.batch import Batch
from kdx.datasets.targets import Targets, rows_of, take_rows

__all__ = ["View"]

Transform = Callable[[Tensor, Tensor, int], Tensor]
"""``(inputs [B, ...], index [B], epoch) -> inputs [B, ...]``, such as :class:`kdx.datasets.ShiftFlip`."""


class View(Dataset[Batch]):
    """Chosen rows of a data set, each a :class:`kdx.Batch` of one sample; torch's default collate joins them.

    The ``index`` of an item is its row in ``dataset``, whatever the choice of rows and however the loader shuffles, so
    what is stored under it (a teacher's output, the last epoch's prediction) is found again.

    Args:
        dataset: a map-style data set whose items are ``(input, target)``, or a :class:`kdx.Batch` of one sample with
            ``views`` of its own, as another tokenisation of a text.
        indices: rows of ``dataset``, int64, ``[M]``, in the order of the view; None takes all rows.
        targets: targets that replace those of ``dataset``, ``[M, ...]``: ``targets[k]`` is for row ``indices[k]``; for
            several heads a mapping of such tensors. None keeps the data set's own.
        transform: called as ``transform(inputs [B, ...], index [B], epoch)`` on the samples of each fetch, stacked;
            needs inputs that are tensors of one shape.
        views: number of epochs after which the transform's draws repeat, so that a store can hold all of them; None:
            never.
        also: further views of each sample, for ``batch.views``: name -> transform of the data set's inputs, as
            ``transform``; None shows them as they are. ``{"weak": None}`` beside a ``transform`` lets a teacher with
            ``view="weak"`` see what is not augmented.

    Raises:
        ValueError: ``indices`` or ``targets`` has the wrong shape, or ``views`` is below 1.
        IndexError: ``indices`` names a row that ``dataset`` does not have.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from kdx.datasets import Digits, View, few_labels, train_validation_split
        >>> digits = Digits("train")
        >>> train, validation = train_validation_split(digits.targets, validation=200)
        >>> view = View(digits, train, few_labels(digits.targets[train], labelled=100))
        >>> batch = next(iter(DataLoader(view, batch_size=64)))
        >>> batch.inputs.shape, batch.index[:3].tolist() == train[:3].tolist()
        (torch.Size([64, 1, 8, 8]), True)

    """

    def __init__(
        self,
        dataset: Dataset[tuple[Any, Any]],
        indices: Tensor | Sequence[int] | None = None,
        targets: Targets | None = None,
        *,
        transform: Transform | None = None,
        views: int | None = None,
        also: Mapping[str, Transform | None] | None = None,
    ) -> None:
        if views is not None and views < 1:
            raise ValueError(f"views must be a number of epochs, 1 or more, or None; got {views}")
        size = len(dataset)  # type: ignore[arg-type]  # map-style data sets have a length, torch's base class has none
        rows = torch.arange(size) if indices is None else torch.as_tensor(indices, dtype=torch.int64)
        if rows.dim() != 1:
            raise ValueError(f"indices must have one dimension [M]; got shape {list(rows.shape)}")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < size:
            raise IndexError(f"indices must lie in 0 .. {size - 1}; got {int(rows.min())} .. {int(rows.max())}")
        if targets is not None and rows_of(targets) != len(rows):
            raise ValueError(
                f"targets must have one entry for each of the {len(rows)} indices, in their order; got "
                f"{rows_of(targets)}: give targets[indices] if they are for the whole data set"
            )
        self.dataset = dataset
        self.indices = rows
        self.targets = targets
        self.transform = transform
        self.views = views
        self.also = dict(also or {})
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Tell ``transform`` the epoch; call it before the loader is iterated, so that its workers see it."""
        self.epoch = epoch if self.views is None else epoch % self.views

    def cycling(self, views: int) -> View:
        """The same rows and labels, with views that repeat after ``views`` epochs."""
        return View(self.dataset, self.indices, self.targets, transform=self.transform, views=views, also=self.also)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Batch:
        """One sample: its input, its target and its row in ``dataset``."""
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: list[int]) -> list[Batch]:
        """The samples of one batch; torch's loaders call this where it exists."""
        rows = self.indices[positions]  # [B]
        samples = [self.dataset[row] for row in rows.tolist()]
        plain = [sample[0] for sample in samples]
        inputs = self._shown(plain, self.transform, rows)
        shown = {name: self._shown(plain, transform, rows) for name, transform in self.also.items()}
        given: list[Mapping[str, Any]] = [sample.views if isinstance(sample, Batch) else {} for sample in samples]
        views = [{**given[k], **{name: items[k] for name, items in shown.items()}} for k in range(len(samples))]
        own = [sample[1] for sample in samples]
        targets = own
        if self.targets is not None:
            targets = _each(take_rows(self.targets, positions))
        return [Batch(*sample) for sample in zip(inputs, targets, rows.tolist(), views, strict=True)]

    def _shown(self, inputs: list[Any], transform: Transform | None, rows: Tensor) -> list[Any]:
        return inputs if transform is None else list(transform(torch.stack(inputs), rows, self.epoch))


def _each(chosen: Targets) -> list[Any]:
    """The targets of every row by itself."""
    if isinstance(chosen, Mapping):
        columns = {name: _each(each) for name, each in chosen.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    numbers = chosen.dim() == 1 and not chosen.is_floating_point()  # a float's would become float64
    return chosen.tolist() if numbers else list(chosen)
