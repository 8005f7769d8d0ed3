"""Weights of classes or labels, kept on the device where they are used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Weights"]


class Weights:
    """Fixed numbers in float64 that follow the tensors they are used with.

    Args:
        values: one number each for classes or labels.
    """

    def __init__(self, values: Sequence[float]) -> None:
        self.values = torch.tensor(values, dtype=torch.float64)

    def on(self, like: Tensor) -> Tensor:
        """The numbers on a tensor's device, copied there once."""
        self.values = self.values.to(like.device)
        return self.values
