"""Logits of any shape as rows: ``[O, C, I]`` with the classes in the middle, O * I rows, in the order of the tensor."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["as_rows", "from_rows"]


def as_rows(x: Tensor, dim: int) -> Tensor:
    """View ``x`` as ``[O, C, I]`` where C is its dimension ``dim`` (not negative).

    A view for every 1-, 2- and 3-D tensor however it lies in memory; beyond that where the other dimensions can be
    merged, otherwise a copy.
    """
    if dim == x.dim() - 1:
        if x.dim() == 1:
            return x.view(1, -1, 1)
        if x.dim() == 2:
            return x.unsqueeze(-1)
        return (x if x.dim() == 3 else x.flatten(0, -3)).transpose(1, 2)
    if dim == 0:
        return x.unsqueeze(0) if x.dim() == 2 else x.flatten(1, -2).transpose(0, 1)
    return x if x.dim() == 3 else x.flatten(dim + 1).flatten(0, dim - 1)


def from_rows(rows: Tensor, shape: torch.Size, dim: int) -> Tensor:
    """The inverse of `as_rows`: ``[O, C, I]`` back in ``shape``."""
    if len(shape) == 2:  # the commonest, without a second view
        return rows.squeeze(-1 if dim == 1 else 0)
    if dim == len(shape) - 1:
        return (rows.squeeze(-1) if len(shape) == 1 else rows.transpose(1, 2)).reshape(shape)
    return (rows.transpose(0, 1) if dim == 0 else rows).reshape(shape)
