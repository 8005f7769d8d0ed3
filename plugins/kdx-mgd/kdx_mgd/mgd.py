"""Masked generative distillation: the teacher's feature is generated from the student's, partly hidden."""

from __future__ import annotations

from typing import Literal, Unpack

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx import TapNames, TapOptions
from kdx.features import Feature, convolution, match_maps, trained
from kdx.knowledge import PairedLayers

__all__ = ["MGD", "mask"]

Unit = Literal["pixels", "channels"]


def mask(feature: Tensor, ratio: float, unit: Unit) -> Tensor:
    """Sets a random part of a map to zero, each pixel (all channels) or each channel with probability ``ratio``.

    Draws from torch's global generator, which a resumed run continues; nothing is rescaled.

    Args:
        feature: ``[N, C, ...]``.
        ratio: in ``[0, 1]``.
        unit: ``"pixels"`` draws ``[N, 1, ...]``, ``"channels"`` ``[N, C, 1, ...]``.
    """
    samples, width, *places = feature.shape
    shape = (samples, 1, *places) if unit == "pixels" else (samples, width, *[1] * len(places))
    return feature * (torch.rand(shape, device=feature.device) >= ratio)


class MGD(PairedLayers):
    """Masked generative distillation: generate the teacher's map from what is left of a masked student map.

    Loss: ``sum((G(mask(r(F_s))) - F_t)^2) / N``, a sum over channels and pixels and a mean over the batch, summed over
    pairs of layers; no ``T^2``. ``r`` is a 1x1 convolution to the teacher's channels and ``G`` two 3x3 convolutions
    with a ReLU between them; both are learned with the student and are no part of the exported one. The larger map is
    average-pooled to the smaller; tokens of a transformer are laid on
    their grid (``grid=``). Gradients reach the student, ``r``
    and ``G``. The mask is drawn anew in every call, in evaluation mode too.

    Because the loss is a sum, its usual weight is small: 7e-5 for classification, 2e-5 for detection and segmentation.

    Args:
        student: taps of the student's layers, maps ``[N, C, H, W]`` or tokens ``[N, L, D]``.
        teacher: taps of the teacher's layers; the paper takes the last stage for classification.
        ratio: probability that a unit is hidden, in ``[0, 1]``; 0.15 for classification in the authors' code, 0.45 to
            0.75 for dense prediction.
        unit: what is hidden: ``"channels"`` as in the authors' code for classification, ``"pixels"`` as in the paper.
        seed: for ``pairing="random"``.
        **features: what is known of the layers: ``layout=``, ``grid=``, ``class_token=``, ``registers=``, see
            :class:`kdx.TapOptions`.

    Raises:
        ValueError: ``ratio`` or ``unit`` is something else.

    Paper: Yang et al., Masked Generative Distillation, ECCV 2022, https://arxiv.org/abs/2205.01529.

    Example:
        >>> import torch
        >>> from kdx import Batch, Captured
        >>> mgd = MGD(student="stage2", teacher="stage4")
        >>> s = Captured({"stage2": torch.randn(2, 4, 8, 8)})
        >>> t = Captured({"stage4": torch.randn(2, 16, 4, 4)})
        >>> mgd.setup(s, t)
        >>> mgd(s, t, Batch(None)).dim(), len(list(mgd.parameters()))
        (0, 5)
    """

    builds = True

    def __init__(
        self,
        *,
        student: TapNames,
        teacher: TapNames,
        ratio: float = 0.15,
        unit: Unit = "channels",
        seed: int = 0,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, seed=seed, **features)
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio must be a probability in [0, 1], got {ratio}")
        if unit not in ("pixels", "channels"):
            raise ValueError(f"unit must be 'pixels' or 'channels', got {unit!r}")
        self.ratio = ratio
        self.unit: Unit = unit
        self.adapters = nn.ModuleList()
        self.generators = nn.ModuleList()

    @override
    def build(self, pairs: list[tuple[Feature, Feature]]) -> None:
        for student, teacher in pairs:
            source, target = match_maps(student, teacher)
            width, axes = target.shape[1], target.dim() - 2
            self.adapters.append(trained(convolution(source.shape[1], width, axes), source))
            first, second = (convolution(width, width, axes, 3, padding=1, bias=True) for _ in range(2))
            self.generators.append(trained(nn.Sequential(first, nn.ReLU(), second), source))

    @override
    def compare(self, pair: int, student: Feature, teacher: Feature) -> Tensor:
        source, target = match_maps(student, teacher)
        hidden = mask(self.adapters[pair](source), self.ratio, self.unit)
        return (self.generators[pair](hidden) - target).square().sum() / max(len(target), 1)
