"""The checked arguments of linear_kl and topk_kl: the sides, the numbers of the rows, and what is no tensor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "BUCKET",
    "COMMON",
    "DENSE",
    "DROP",
    "EVEN",
    "RENORMALISE",
    "SAMPLED",
    "Gradients",
    "Options",
    "Rows",
    "Side",
    "Wanted",
]


DENSE, BUCKET, EVEN, RENORMALISE, DROP, SAMPLED, COMMON = range(7)
"""The teacher's row: all classes, or a few of them and what becomes of the others (samples stand for all), or another
vocabulary with classes in common.
"""


class Side(NamedTuple):
    """One side's logits ``[N, V]``: hidden states and the head they go through, or the logits themselves.

    The logits are ``z = scale (hidden weight' + bias)``, then ``softcap tanh(z / softcap)`` where that is not 0. Of a
    teacher known by a few classes, ``hidden`` are their log-probabilities and last that of all others.
    """

    hidden: Tensor  # [N, H], the logits [N, V] where there is no weight, or log-probabilities [N, K + 1]
    weight: Tensor | None  # [V, H]
    bias: Tensor | None  # [V]
    scale: float
    softcap: float
    ids: Tensor | None = None  # [N, K], -1 where a row has no class; COMMON: those in common [M], on either side

    def classes(self) -> int:
        """How many classes it has, of :data:`DENSE` and :data:`COMMON`."""
        return self.hidden.shape[1] if self.weight is None else self.weight.shape[0]


class Rows(NamedTuple):
    """One number per row: coefficients ``[N]`` of the two terms in the accumulation dtype, and labels."""

    kl: Tensor
    labels: Tensor | None
    ce: Tensor | None

    def at(self, which: slice | Tensor) -> Rows:
        """Those of some rows."""
        labels, ce = (None if x is None else x[which] for x in (self.labels, self.ce))
        return Rows(self.kl[which], labels, ce)

    def terms(self) -> tuple[Rows, Rows]:
        """Those of the KL alone, and of the cross-entropy alone."""
        return Rows(self.kl, None, None), self._replace(kl=torch.zeros_like(self.kl))

    def counted(self) -> Tensor:
        """Bool ``[N]``: the rows with a coefficient that is not 0."""
        return self.kl != 0 if self.ce is None else (self.kl != 0) | (self.ce != 0)


class Options(NamedTuple):
    """Everything about the loss that is not a tensor, with the numbers of softmax_kl's README, section "Backends"."""

    classes: int
    tail: int
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
