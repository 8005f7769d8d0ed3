"""Neuron selectivity transfer: the distribution of the channels' responses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from kdx.features.adapters import match_maps
from kdx.features.feature import Feature
from kdx.features.operands import in_full_precision
from kdx.knowledge.paired import PairedLayers

__all__ = ["NST", "nst"]


@in_full_precision
def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between the channels of two maps, with the kernel ``k(a, b) = (a'b)^2``.

    Every channel is an l2-normalised vector of HW responses, a sample of the distribution; the three means of the
    kernel run over all pairs of channels and then over the batch.

    The kernel of degree 2 is an inner product of outer products, so the same number comes from the ``[HW, HW]`` second
    moments as from the ``[C, C]`` kernels; the smaller is taken. Peak memory beside the inputs' normalised copies is
    ``N min(2 (HW)^2, C_s^2 + C_t^2 + C_s C_t)`` floats and as much again for the backward pass; ``[N, C, C, HW]`` is
    never formed.

    Args:
        student: ``[N, C_s, H, W]``, any float dtype; computed in float32 (float64 stays).
        teacher: ``[N, C_t, H, W]``.

    Returns:
        A scalar >= 0, with gradients to both; an all-zero channel counts as a zero vector and has gradient 0.

    Example:
        >>> import torch
        >>> one, other = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), torch.tensor([0.0, 5.0]).view(1, 1, 1, 2)
        >>> nst(one, other).item()
        2.0
    """
    s, t = (F.normalize(feature.flatten(2), dim=2) for feature in (student, teacher))  # [N, C, HW]
    c_s, c_t, pixels = s.shape[1], t.shape[1], s.shape[2]
    if 2 * pixels**2 <= c_s**2 + c_t**2 + c_s * c_t:
        moments = torch.bmm(s.mT, s) / c_s - torch.bmm(t.mT, t) / c_t  # [N, HW, HW]
        return moments.square().sum((1, 2)).mean()
    return _kernel(s, s) + _kernel(t, t) - 2 * _kernel(s, t)


class NST(PairedLayers):
    """Squared maximum mean discrepancy between the channels' normalised responses, summed over pairs of layers.

    Loss: ``mean k(s, s') + mean k(t, t') - 2 mean k(s, t)`` with ``k(a, b) = (a'b)^2`` over all pairs of channels,
    averaged over the batch; no ``T^2``. Gradients reach the student. Weight 50 in the authors' code for ImageNet and in
    the common CIFAR-100 recipe (the paper's weight is a lambda / 2). The authors' code leaves out the teacher's term,
    which has no gradient. The loss does not change with the order of the channels. Maps of different size are
    average-pooled to the smaller. Nothing is learned. For peak memory see :func:`nst`: maps of 8x8 with any number of
    channels need 32 kB a sample.

    Args:
        student: taps of maps ``[N, C, H, W]``, from shallow to deep.
        teacher: taps of maps.
        pairing: see :data:`kdx.features.Strategy`.
        seed: for ``pairing="random"``.
        **features: see :class:`kdx.tap.TapOptions`.

    Paper: Huang, Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017,
    https://arxiv.org/abs/1707.01219; code: https://github.com/TuSimple/neuron-selectivity-transfer.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> feature = torch.tensor([[1.0, 0.0], [3.0, 4.0]]).view(1, 2, 1, 2)
        >>> same = NST(student="conv", teacher="conv")(Captured({"conv": feature}), Captured({"conv": feature}), None)
        >>> round(same.item(), 6)
        0.0
    """

    @override
    def compare(self, pair: int, student: Feature, teacher: Feature) -> Tensor:
        return nst(*match_maps(student, teacher))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b.mT).square().mean((1, 2)).mean()
