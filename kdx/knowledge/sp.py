"""Similarity preservation: samples that are alike to the teacher are alike to the student."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from kdx.features.operands import check_same_rows, in_full_precision
from kdx.knowledge.relation import Relation, unit_rows

__all__ = ["SP", "sp"]


@in_full_precision
def sp(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving loss of two features ``[N, ...]``, a scalar, 0 for an empty batch; see :class:`SP`."""
    check_same_rows(student, teacher)
    difference = _similarities(student) - _similarities(teacher)  # [N, N]
    return (difference * difference).sum() / max(1, difference.numel())


def _similarities(feature: Tensor) -> Tensor:
    rows = feature.flatten(1)
    return unit_rows(rows @ rows.T)


class SP(Relation):
    """Squared difference between the similarity matrices of a batch in student and teacher.

    Loss: ``sum_ij (G_s - G_t)_ij^2 / N^2`` with ``G = F F'`` of the flattened features and each row of ``G`` divided by
    its Euclidean norm; summed over the pairs of layers. No ``T^2``. The loss does not change when a feature is rotated
    or scaled as a whole. Gradients reach both sides; a sample whose feature is all zero has a row of zeros.

    Weight: 3000 in the authors' and the common CIFAR recipe, on the last block's maps.

    Args:
        student: tap or taps ``[N, ...]``; any width.
        teacher: tap or taps; any width.
        pairing: which student layer learns from which teacher layer, see :data:`kdx.features.Strategy`.
        seed: for ``pairing="random"``.
        **features: see :class:`kdx.tap.TapOptions`.

    Paper: Tung, Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, https://arxiv.org/abs/1907.09682.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"logits": torch.eye(2)}), Captured({"logits": torch.ones(2, 3)})
        >>> round(SP()(s, t, None).item(), 4)  # rows (1, 0) and (0, 1) against (1, 1) / sqrt(2)
        0.2929
    """

    @override
    def relation(self, student: Tensor, teacher: Tensor) -> Tensor:
        return sp(student, teacher)
