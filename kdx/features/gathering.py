"""Rows gathered from all ranks, for losses that compare samples with each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

__all__ = ["whole_batch"]


class _Gather(torch.autograd.Function):
    """Rows of all ranks; the backward pass gives the gradient of the own rows, times the number of ranks."""

    @staticmethod
    @override
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ranks, n = dist.get_world_size(), rows.shape[0]
        ctx.start, ctx.stop, ctx.ranks = dist.get_rank() * n, (dist.get_rank() + 1) * n, ranks
        gathered = rows.new_empty((ranks * n, *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        own: Tensor = gradients[0][ctx.start : ctx.stop] * ctx.ranks
        return own


def whole_batch(rows: Tensor) -> Tensor:
    """The rows of all ranks in the order of the ranks; ``rows`` itself where there is one process.

    A relation taken over each rank's part alone leaves out every pair of samples on different ranks. Here every rank
    computes the loss of the whole batch; its gradient reaches the rank's own rows, multiplied by the number of ranks
    because data parallelism averages gradients over ranks, each of which holds one part of the sum. So several ranks
    take the step of one process on the same batch, up to rounding.

    Args:
        rows: ``[N, ...]``, the same N on every rank (Accelerate's data loaders ensure it).

    Returns:
        ``[ranks * N, ...]``.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    apply: Any = _Gather.apply
    gathered: Tensor = apply(rows)
    return gathered
