"""Batches in which every sample has a partner of its own class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler
from typing_extensions import override

__all__ = ["SameClassPairs"]


class SameClassPairs(Sampler[list[int]]):
    """A batch sampler that draws ``pairs`` anchors and then, in the same order, another row of each one's class.

    Anchors go through all rows in a new random order each epoch; a partner is drawn uniformly from the other rows of
    the class (the row itself, where it is the only one). Rows without a label (negative) are left out. Every batch is
    full: the last one continues with the next round through the rows. Everything is drawn from torch's global
    generator, as by torch's own samplers, so that :func:`kdx.fit` resumes exactly.

    Args:
        targets: class of every row ``[M]``, int64.
        pairs: anchors in a batch, which has twice as many rows.
        num_samples: anchors in an epoch, rounded up to full batches; None: as many as there are rows with a label.
            With more, the rows are used again.

    Raises:
        ValueError: no row has a label, or a size is below 1.

    Example:
        >>> sampler = SameClassPairs([0, 1, 0, 1, 0, 1], pairs=3)
        >>> targets = torch.tensor([0, 1, 0, 1, 0, 1])
        >>> [targets[batch[:3]].equal(targets[batch[3:]]) for batch in sampler]
        [True, True]
    """

    def __init__(self, targets: Tensor | Sequence[int], pairs: int, *, num_samples: int | None = None) -> None:
        for name, value in (("pairs", pairs), ("num_samples", num_samples)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        self.targets = torch.as_tensor(targets)
        self.pairs = pairs
        self.batch_size = 2 * pairs  # rows in a batch: Accelerate deals full batches out to ranks and reads it
        self.rows = (self.targets >= 0).nonzero().squeeze(1)
        if not len(self.rows):
            raise ValueError("targets has no row with a label, so there are no pairs of one class")
        self.num_samples = num_samples or len(self.rows)
        labels = self.targets[self.rows]
        count = torch.bincount(labels)
        self._sorted = self.rows[labels.argsort(stable=True)]  # rows of one class in a run
        self._count = count
        self._start = count.cumsum(0) - count
        self._place = torch.empty_like(self.targets)  # of each row in its run
        self._place[self._sorted] = torch.arange(len(self.rows)) - self._start[self.targets[self._sorted]]

    def __len__(self) -> int:
        return math.ceil(self.num_samples / self.pairs)

    @override
    def __iter__(self) -> Iterator[list[int]]:
        rounds = math.ceil(len(self) * self.pairs / len(self.rows))
        order = torch.cat([torch.randperm(len(self.rows)) for _ in range(rounds)])
        for k in range(len(self)):
            anchors = self.rows[order[k * self.pairs : (k + 1) * self.pairs]]
            yield [*anchors.tolist(), *self._partners(anchors).tolist()]

    def _partners(self, anchors: Tensor) -> Tensor:
        own = self.targets[anchors]
        count = self._count[own]
        steps = 1 + (torch.rand(len(anchors), dtype=torch.float64) * (count - 1)).long()  # 1 .. count - 1, or count = 1
        return self._sorted[self._start[own] + (self._place[anchors] + steps) % count]
