"""Attention transfer: the student looks where the teacher looks."""

from __future__ import annotations

from typing import Unpack, get_args

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from kdx.features.adapters import match_maps
from kdx.features.feature import Feature
from kdx.features.matching import Strategy
from kdx.features.operands import Variant, check_choice, in_full_precision
from kdx.knowledge.paired import PairedLayers
from kdx.tap import TapNames, TapOptions

__all__ = ["AttentionTransfer", "attention_transfer"]


@in_full_precision
def attention_transfer(student: Tensor, teacher: Tensor, *, variant: Variant = "code") -> Tensor:
    """Distance of two spatial attention maps ``q = vec(mean_c F^2) / ||vec(mean_c F^2)||``.

    Args:
        student: ``[N, C, H, W]``, any float dtype; computed in float32 (float64 stays).
        teacher: ``[N, C', H, W]``.
        variant: ``"code"``: the mean of ``(q_s - q_t)^2`` over batch and pixels; ``"paper"``: ``1/2 ||q_s - q_t||``,
            not squared, averaged over the batch.

    Returns:
        A scalar, with gradients to both; an all-zero map has an all-zero ``q``.

    Example:
        >>> import torch
        >>> flat, point = torch.ones(1, 3, 1, 4), torch.tensor([0.0, 2.0, 0.0, 0.0]).view(1, 1, 1, 4)
        >>> attention_transfer(flat, point).item()
        0.25
    """
    difference = _attention(student) - _attention(teacher)
    if variant == "code":
        return difference.square().mean()
    # the root of an exact zero has no gradient; both maps equal means 0 with gradient 0
    square = difference.square().sum(1)
    equal = square == 0
    return 0.5 * (square.masked_fill(equal, 1.0).sqrt() * ~equal).mean()


class AttentionTransfer(PairedLayers):
    """Distance of normalised spatial attention maps, summed over pairs of layers.

    Loss: with ``q = vec(mean_c F^2) / ||.||_2`` the mean of ``(q_s - q_t)^2`` over batch and pixels
    (``variant="code"``, weight 1000 in the common CIFAR-100 recipe, whose maps have 8x8 to 32x32 pixels; take much less
    for smaller maps) or ``1/2 ||q_s - q_t||_2`` averaged over the batch (``variant="paper"``), summed over pairs. No
    ``T^2``. Gradients reach the student. The loss does not change with the order of the channels or a positive factor
    of a map. Maps of different size are average-pooled to the smaller; tokens are laid on their grid where their
    numbers differ. Nothing is learned.

    Args:
        student: taps of maps ``[N, C, H, W]``, from shallow to deep.
        teacher: taps of maps.
        pairing: see :data:`kdx.features.Strategy`.
        variant: ``"paper"`` or ``"code"``; the authors' code squares the distance and takes the mean.
        seed: for ``pairing="random"``.
        **features: see :class:`kdx.tap.TapOptions`.

    Paper: Zagoruyko, Komodakis, Paying More Attention to Attention, ICLR 2017, https://arxiv.org/abs/1612.03928.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> at = AttentionTransfer(student="conv", teacher="conv")
        >>> feature = torch.arange(8.0).view(1, 2, 2, 2)
        >>> at(Captured({"conv": feature}), Captured({"conv": 3 * feature.flip(1)}), None).item()
        0.0
    """

    def __init__(
        self,
        *,
        student: TapNames,
        teacher: TapNames,
        pairing: Strategy = "explicit",
        variant: Variant = "code",
        seed: int = 0,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, pairing=pairing, seed=seed, **features)
        check_choice("variant", variant, get_args(Variant))
        self.variant: Variant = variant

    @override
    def compare(self, pair: int, student: Feature, teacher: Feature) -> Tensor:
        return attention_transfer(*match_maps(student, teacher), variant=self.variant)


def _attention(feature: Tensor) -> Tensor:
    return F.normalize(feature.square().mean(1).flatten(1))  # [N, HW]
