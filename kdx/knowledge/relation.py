"""The base of components that compare how samples relate to each other."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS
from kdx.features.gathering import whole_batch
from kdx.features.matching import Strategy
from kdx.knowledge.paired import PairedLayers

__all__ = ["Relation", "unit_rows"]


class Relation(PairedLayers):
    """Base of knowledge that compares relations between the samples of a batch, on features or on logits.

    Widths may differ: only relations are compared. Every feature is one vector per sample, maps and tokens flattened.
    Losses of several pairs of layers are added. On several ranks the relations are those of the whole batch (see
    :func:`kdx.features.whole_batch`); with gradient accumulation they are those of each micro-batch.

    Args:
        student: tap or taps ``[N, ...]``.
        teacher: tap or taps ``[N, ...]``.
        pairing: which student layer learns from which teacher layer, see :data:`kdx.features.Strategy`.
        seed: for ``pairing="random"``.
    """

    kind = "relation"

    def __init__(
        self,
        *,
        student: str | tuple[str, ...] = LOGITS,
        teacher: str | tuple[str, ...] = LOGITS,
        pairing: Strategy = "explicit",
        seed: int = 0,
    ) -> None:
        super().__init__(student=student, teacher=teacher, pairing=pairing, seed=seed)

    @abstractmethod
    def relation(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one pair of layers, ``[N, D_s]`` and ``[N, D_t]`` of the whole batch."""

    @override
    def compare(self, pair: int, student: Tensor, teacher: Tensor) -> Tensor:
        return self.relation(whole_batch(student.flatten(1)), whole_batch(teacher.flatten(1)))


def unit_rows(x: Tensor) -> Tensor:
    """Rows ``[N, D]`` over their Euclidean norm; a row of zeros stays one, with a finite gradient."""
    square = (x * x).sum(dim=1, keepdim=True)
    return x / square.masked_fill(square < torch.finfo(x.dtype).tiny, 1).sqrt()
