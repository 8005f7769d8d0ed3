"""Deviations from a mean, where "no deviation" and rounding are told apart."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["centred"]


def centred(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Deviations from the mean over ``dim``, and the sum of their squares (kept as a dimension of 1).

    Equal numbers, in which only rounding deviates, have no direction to divide by their length: both results are
    exactly 0 for them, without gradient, where dividing would blow rounding errors up to the size of a signal.
    """
    deviation = x - x.mean(dim=dim, keepdim=True)
    square = (deviation * deviation).sum(dim=dim, keepdim=True)
    rounding = (4 * torch.finfo(x.dtype).eps) ** 2 * (x * x).sum(dim=dim, keepdim=True)
    flat = square <= rounding
    return deviation.masked_fill(flat, 0), square.masked_fill(flat, 0)
