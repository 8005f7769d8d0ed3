"""Probabilistic knowledge transfer: the chance that a sample picks another as its neighbour."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS
from kdx.features.matching import Strategy
from kdx.features.operands import Variant, check_choice, check_same_rows, in_full_precision
from kdx.knowledge.relation import Relation, unit_rows
from kdx.tap import TapNames, TapOptions

__all__ = ["PKT", "pkt"]

_EPSILON = 1e-7  # of the authors' code, inside the logarithm


@in_full_precision
def pkt(student: Tensor, teacher: Tensor, *, variant: Variant = "code") -> Tensor:
    """Divergence between neighbour probabilities of two features ``[N, ...]``, a scalar, 0 for an empty batch.

    See :class:`PKT`.
    """
    check_same_rows(student, teacher)
    check_choice("variant", variant, ("paper", "code"))
    q, p = _neighbours(student, variant), _neighbours(teacher, variant)
    divergence = (p * ((p + _EPSILON) / (q + _EPSILON)).log()).sum()
    return divergence if variant == "paper" else divergence / max(1, p.numel())


def _neighbours(feature: Tensor, variant: Variant) -> Tensor:
    """``[N, N]``: row i holds the probabilities that sample i picks sample j."""
    rows = unit_rows(feature.flatten(1))
    affinity = ((rows @ rows.T + 1) / 2).clamp(min=0)  # rounding takes a cosine below -1
    if variant == "paper":
        affinity = affinity * (1 - torch.eye(len(rows), dtype=rows.dtype, device=rows.device))
    total = affinity.sum(dim=1, keepdim=True)
    return affinity / total.masked_fill(total == 0, 1)


class PKT(Relation):
    """KL divergence between teacher and student of the probabilities that samples are each other's neighbours.

    Loss: ``sum_ij p_ij log((p_ij + e) / (q_ij + e)) / N^2`` with ``e = 1e-7``; ``p`` (teacher) and ``q`` (student) are
    ``(cos(f_i, f_j) + 1) / 2``, normalised to rows of sum 1; summed over the pairs of layers. That is
    ``variant="code"``. ``"paper"`` leaves a sample out of its own neighbours and sums over all pairs (about ``N^2``
    times as large). No ``T^2``. The loss does not change when a feature is rotated, nor with the length of any sample's
    feature. Gradients reach both sides; a feature of zeros is equally far from all.

    Weight: 3e4 in the common CIFAR recipe, on the pooled feature.

    Args:
        variant: ``"code"`` or ``"paper"``, see above.
        student: tap or taps ``[N, ...]``; any width.
        teacher: tap or taps; any width.
        pairing: which student layer learns from which teacher layer, see :data:`kdx.features.Strategy`.
        seed: for ``pairing="random"``.
        **features: see :class:`kdx.tap.TapOptions`.

    Paper: Passalis, Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018,
    https://arxiv.org/abs/1803.10837, with the cosine kernel; code: https://github.com/passalis/probabilistic_kt.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"logits": torch.eye(2)}), Captured({"logits": torch.ones(2, 3)})
        >>> round(PKT()(s, t, None).item(), 4)  # rows (1/2, 1/2) against (2/3, 1/3)
        0.0294
    """

    def __init__(
        self,
        *,
        variant: Variant = "code",
        student: TapNames = LOGITS,
        teacher: TapNames = LOGITS,
        pairing: Strategy = "explicit",
        seed: int = 0,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, pairing=pairing, seed=seed, **features)
        check_choice("variant", variant, ("paper", "code"))
        self.variant = variant

    @override
    def relation(self, student: Tensor, teacher: Tensor) -> Tensor:
        return pkt(student, teacher, variant=self.variant)

    @override
    def extra_repr(self) -> str:
        return f"variant={self.variant!r}"
