"""The weights of two terms that an op gives apart, checked."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_weights"]


def check_weights(weights: tuple[float | Tensor, float | Tensor], reduction: str) -> None:
    """Checks what a call says of two terms.

    Raises:
        ValueError: ``reduction`` is ``"none"``, or a weight is no finite number, or a tensor of several numbers or one
            that asks for a gradient.
    """
    if reduction == "none":
        raise ValueError("reduction: terms are sums or means, 'none' gives one loss per row")
    for at, weight in enumerate(weights):
        if isinstance(weight, Tensor):
            if weight.numel() != 1:
                raise ValueError(f"weights[{at}]: expected one number, got a tensor {list(weight.shape)}")
            if weight.requires_grad and torch.is_grad_enabled():
                raise ValueError(f"weights[{at}]: gets no gradient; multiply the term by it instead")
        elif not -float("inf") < weight < float("inf"):  # math.isfinite would break a compiled graph
            raise ValueError(f"weights[{at}]: expected a finite number, got {weight}")
