"""The base of components that compare how samples relate to each other."""

from __future__ import annotations

from abc import abstractmethod
from typing import Unpack

import torch
from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS
from kdx.features.feature import Feature
from kdx.features.gathering import whole_batch
from kdx.features.matching import Strategy
from kdx.knowledge.paired import PairedLayers
from kdx.tap import TapNames, TapOptions

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
        **features: see :class:`kdx.tap.TapOptions`.
    """

    kind = "relation"

    def __init__(
        self,
        *,
        student: TapNames = LOGITS,
        teacher: TapNames = LOGITS,
        pairing: Strategy = "explicit",
        seed: int = 0,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, pairing=pairing, seed=seed, **features)

    @abstractmethod
    def relation(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one pair of layers, ``[N, D_s]`` and ``[N, D_t]`` of the whole batch."""

    @override
    def compare(self, pair: int, student: Feature, teacher: Feature) -> Tensor:
        return self.relation(whole_batch(self.rows(student)), whole_batch(self.rows(teacher)))

    def rows(self, feature: Feature) -> Tensor:
        """One vector per sample, ``[N, D]``, of whose order nothing depends; where it does, a subclass says so."""
        return feature.batch_first().flatten(1)


def unit_rows(x: Tensor) -> Tensor:
    """Rows ``[N, D]`` over their Euclidean norm; a row of zeros stays one, with a finite gradient."""
    square = (x * x).sum(dim=1, keepdim=True)
    return x / square.masked_fill(square < torch.finfo(x.dtype).tiny, 1).sqrt()
