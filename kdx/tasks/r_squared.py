"""The coefficient of determination, where some targets are missing."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["RSquared"]


class RSquared(Metric):
    """R^2, the share of the targets' variance that the values explain: the mean over the quantities.

    ``update(values [N, ...], targets [N, ...])`` adds rows; every place behind the first axis is a quantity of its own,
    NaN in targets a missing one. Sums are kept in float64. ``compute`` gives a 0-dim float64 tensor, NaN where the
    targets of every quantity are constant.
    """

    full_state_update = False
    higher_is_better = True
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", default=torch.zeros(4, 0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor, targets: Tensor) -> None:
        """Adds rows."""
        y, z = (each.double().reshape(len(each), -1) for each in (targets, values))  # [N, K]
        known = ~y.isnan()
        y, error = torch.where(known, y, 0.0), torch.where(known, z - y, 0.0)
        rows = torch.stack([known.sum(0).double(), y.sum(0), y.square().sum(0), error.square().sum(0)])
        self.sums = self.sums.to(rows) + rows if self.sums.numel() else rows

    def compute(self) -> Tensor:
        """The mean over the quantities whose targets differ."""
        count, total, squares, errors = self.sums
        variance = squares - total.square() / count.clamp(min=1)
        differ = variance > 1e-12 * squares
        mean: Tensor = (1 - errors[differ] / variance[differ]).mean()
        return mean
