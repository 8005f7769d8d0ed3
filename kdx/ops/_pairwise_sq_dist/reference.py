"""Squared distances in plain PyTorch: the definition the other backends are held to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdx.ops._dtypes import accumulator

_CHUNK = 1 << 24  # differences held at once


def unsupported(x: Tensor, y: Tensor) -> str | None:
    """Why this backend cannot run these tensors: it runs all."""
    return None


def _rows(x: Tensor, y: Tensor) -> Tensor:
    difference = x[:, None, :] - y[None, :, :]  # [n, M, D]
    return (difference * difference).sum(-1)


def sq_dist(x: Tensor, y: Tensor) -> Tensor:
    """``S[i, j] = |x_i - y_j|^2`` by direct differences, ``[N, D], [M, D] -> [N, M]``; differentiable any number of
    times.

    Direct differences keep their digits where a Gram matrix loses them: for points that are close together or far
    from the origin. Rows are taken in chunks, and a chunk is recomputed in the backward pass instead of kept.
    """
    dtype = accumulator(x, y)
    x, y = x.to(dtype), y.to(dtype)
    step = max(1, _CHUNK // max(1, y.numel()))
    if x.shape[0] <= step:
        return _rows(x, y)
    parts = [checkpoint(_rows, rows, y, use_reentrant=False) for rows in torch.split(x, step)]
    return torch.cat(parts)


def forward(x: Tensor, y: Tensor) -> Tensor:
    """The raw contract of every backend: the distances, without a graph."""
    with torch.no_grad():
        return sq_dist(x, y)
