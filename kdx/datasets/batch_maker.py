"""A loader whose batches are made of those of another loader."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Self

from kdx.batch import Batch

__all__ = ["BatchMaker"]


class BatchMaker(ABC):
    """Base of loaders that make each of their batches of one of another loader, with the models as they are then.

    A run that is resumed goes on in the loader inside as it would without the maker, does not make again what was
    consumed before, and puts back what the maker keeps: on a CPU it ends bitwise where an unbroken one ends, if
    :meth:`make` draws nothing but what follows from :meth:`state_dict`. With several processes each has a maker of its
    own, around its share of the loader; the checkpoint holds that of the first.

    A subclass writes :meth:`make`, :meth:`state_dict` and :meth:`load_state_dict`.

    Args:
        loader: any iterable of what :meth:`kdx.Batch.of` reads, but for another maker.

    Raises:
        TypeError: the loader is a maker itself.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        if isinstance(loader, BatchMaker):
            raise TypeError(
                f"{type(self).__name__}: expected a loader of the data, got {type(loader).__name__}, which makes "
                "batches itself; write one maker that does both"
            )
        self.loader = loader

    @abstractmethod
    def make(self, batch: Batch) -> Batch:
        """The batch that is trained on, of the next one of the loader. It is asked for once the step before is over."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that the next batches depend on beside the models, in tensors and plain values."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""

    def over(self, loader: Iterable[Any]) -> Self:
        """The same maker around another loader."""
        other = copy.copy(self)
        other.loader = loader
        return other

    def __iter__(self) -> Iterator[Batch]:
        """The batches, each made when it is asked for."""
        for item in self.loader:
            yield self.make(Batch.of(item))

    def __len__(self) -> int:
        """The number of batches of the loader inside."""
        return len(self.loader)  # type: ignore[arg-type]  # a loader without a length has none here either
