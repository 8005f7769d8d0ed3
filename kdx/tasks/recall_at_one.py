"""Recall@1: the share of samples whose nearest other sample is of the same class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

__all__ = ["RecallAtOne"]


class RecallAtOne(Metric):
    """Share of samples whose nearest other sample, by cosine, has the same class.

    ``update(embeddings [N, D], targets [N])`` collects; ``compute`` compares every sample with all others.
    """

    full_state_update = False
    higher_is_better = True
    embeddings: list[Tensor]
    targets: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("embeddings", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, targets: Tensor) -> None:
        """Adds samples."""
        self.embeddings.append(F.normalize(embeddings.float(), dim=1))
        self.targets.append(targets)

    def compute(self) -> Tensor:
        """The share, a 0-dim fp32 tensor."""
        x, targets = dim_zero_cat(self.embeddings), dim_zero_cat(self.targets)
        hits = torch.zeros((), device=x.device)
        for start in range(0, len(x), 1024):
            near = x[start : start + 1024] @ x.T  # [rows, N]
            rows = torch.arange(len(near), device=x.device)
            near[rows, rows + start] = -torch.inf
            hits += (targets[near.argmax(1)] == targets[start : start + 1024]).sum()
        return hits / len(x)
