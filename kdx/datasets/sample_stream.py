"""An endless stream of samples in which new classes may appear."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from kdx.batch import Batch
from kdx.datasets.view import View

__all__ = ["SampleStream"]


class SampleStream(IterableDataset[Batch]):
    """An endless stream of the rows of a view in random order.

    In the first pass every row comes exactly once, so that testing on a batch before training on it
    (``prequential=True`` of :func:`kdx.fit`) meets unseen samples only; later passes repeat the rows with the
    transform's next views. With ``phases`` the classes arrive over the first pass: class number r in a random order
    of C appears from phase ``floor(r * phases / C)`` on, its rows spread over the phases that are left.

    The stream is a function of its arguments and its position, which :meth:`state_dict` holds: a run on it resumes
    without replaying, bitwise, with ``num_workers=0``. With workers each takes every n-th sample, and a resumed run
    replays what it had consumed.

    Args:
        view: the rows, with their labels.
        phases: number of phases over which the classes arrive; 1: all are there from the start.
        seed: seed of the order.

    Raises:
        ValueError: ``view`` is empty, its labels are unknown or hidden though classes are to arrive, or ``phases`` < 1.

    Example:
        >>> from itertools import islice
        >>> from kdx.datasets import Digits, View
        >>> stream = SampleStream(View(Digits("train")), phases=5)
        >>> len({sample.targets for sample in islice(stream, 50)})
        2
        >>> stream.state_dict()
        {'position': 50}
    """

    def __init__(self, view: View, *, phases: int = 1, seed: int = 0) -> None:
        if len(view) == 0:
            raise ValueError("view has no rows; a stream needs at least one")
        if phases < 1:
            raise ValueError(f"phases must be 1 or more, got {phases}")
        targets: Any = view.targets
        if targets is None and (own := getattr(view.dataset, "targets", None)) is not None:
            targets = own[view.indices]
        if phases > 1 and (targets is None or bool((targets < 0).any())):
            raise ValueError("phases: classes can arrive over time only if every row has a known label")
        self.view = view
        self.targets = targets
        self.phases = phases
        self.seed = seed
        self.position = 0
        self._pass: tuple[int, Tensor] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Samples from the position on; a new iterator goes on where the last one was."""
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        self.position += first
        while True:
            number, place = divmod(self.position, len(self.view))
            self.view.set_epoch(number)
            sample = self.view[int(self._order(number)[place])]
            self.position += step
            yield sample

    @property
    def dataset(self) -> View:
        """The view, whose rows the samples' index names."""
        return self.view

    def state_dict(self) -> dict[str, int]:
        """The position."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes to a position."""
        self.position = int(state["position"])

    def _order(self, number: int) -> Tensor:
        """The rows of a pass in their order, int64 ``[len(view)]``."""
        if self._pass is None or self._pass[0] != number:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % (1 << 63))
            order = torch.randperm(len(self.view), generator=generator)
            if number == 0 and self.phases > 1:
                phase = self._phases(generator)
                order = order[phase[order].sort(stable=True).indices]
            self._pass = (number, order)
        return self._pass[1]

    def _phases(self, generator: torch.Generator) -> Tensor:
        """The phase in which each row comes, int64 ``[len(view)]``."""
        classes, which = torch.unique(self.targets, return_inverse=True)
        rank = torch.randperm(len(classes), generator=generator)
        arrival = (rank * self.phases // len(classes))[which]  # [rows]
        left = self.phases - arrival
        return arrival + (torch.rand(len(which), generator=generator, dtype=torch.float64) * left).long()
