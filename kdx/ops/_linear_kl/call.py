"""The arguments of a call of linear_kl, checked: the two sides, the numbers of the rows, and what is no tensor."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Gradients", "Options", "Rows", "Side", "Wanted"]


class Side(NamedTuple):
    """One side's logits ``[N, V]``: hidden states and the head they go through, or the logits themselves.

    The logits are ``z = scale (hidden weight' + bias)``, then ``softcap tanh(z / softcap)`` where that is not 0.
    """

    hidden: Tensor  # [N, H], or the logits [N, V] where there is no weight
    weight: Tensor | None  # [V, H]
    bias: Tensor | None  # [V]
    scale: float
    softcap: float


class Rows(NamedTuple):
    """One number per row: coefficients ``[N]`` of the two terms in the accumulation dtype, and labels."""

    kl: Tensor
    labels: Tensor | None
    ce: Tensor | None


class Options(NamedTuple):
    """Everything about the loss that is not a tensor, with the numbers of softmax_kl's README, section "Backends"."""

    classes: int
    temperature: float
    divergence: int
    beta: float
    kl_scale: float
    ce_scale: float
    reduce: bool
    backend: str


class Wanted(NamedTuple):
    """The gradients of the student's side that are asked for; a product that none of them needs is not computed."""

    hidden: bool
    weight: bool
    bias: bool


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Those of hidden states, weight and bias; None where one is not wanted."""
