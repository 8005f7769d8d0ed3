"""Branches: small classifiers on the stages of a network, there during training only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from kdx.capture import Captured
from kdx.features.adapters import BatchNorm, channels, match, to_vector

__all__ = ["Branch"]

REDUCTION = 4


class Branch(nn.Module):
    """A bottleneck from a shallow stage to the shape of the deepest one, and a linear classifier on its pooled output.

    For maps: a 1x1 convolution to a quarter of the deepest channels, a convolution whose kernel and stride are the
    ratio of the sizes, a 1x1 convolution, each with BatchNorm and ReLU; what is left of the size is average-pooled. For
    tokens and vectors: LayerNorm, a linear layer to a quarter of the width, GELU, a linear layer. Shapes are read from
    one example of each stage.

    Args:
        shallow: ``[N, C, H, W]``, ``[N, L, D]`` or ``[N, D]``, what the stage gives.
        deepest: what the last stage gives.
        classes: number of logits.
    """

    def __init__(self, shallow: Tensor, deepest: Tensor, classes: int) -> None:
        super().__init__()
        width = channels(deepest)
        hidden = max(width // REDUCTION, 1)
        self.size: tuple[int, int] | None = None
        if shallow.dim() == deepest.dim() == 4:
            self.size = (deepest.shape[2], deepest.shape[3])
            ratio = max(shallow.shape[2] // self.size[0], 1), max(shallow.shape[3] // self.size[1], 1)
            self.bottleneck: nn.Module = nn.Sequential(
                nn.Conv2d(channels(shallow), hidden, 1, bias=False),
                BatchNorm(hidden),
                nn.ReLU(),
                nn.Conv2d(hidden, hidden, ratio, ratio, bias=False),
                BatchNorm(hidden),
                nn.ReLU(),
                nn.Conv2d(hidden, width, 1, bias=False),
                BatchNorm(width),
                nn.ReLU(),
            )
        else:
            inputs = channels(match(shallow, deepest)[0])
            self.bottleneck = nn.Sequential(
                nn.LayerNorm(inputs), nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, width)
            )
        self.classifier = nn.Linear(width, classes)
        self.to(shallow.device, shallow.dtype)

    @override
    def forward(self, shallow: Tensor, deepest: Tensor) -> Captured:
        """The branch's ``feature`` (shaped as the deepest), its pooled ``embedding`` and its ``logits``."""
        if self.size is None:
            feature = self.bottleneck(match(shallow, deepest)[0])
        else:
            feature = self.bottleneck(shallow)
            if feature.shape[2:] != torch.Size(self.size):
                feature = F.adaptive_avg_pool2d(feature, self.size)
        embedding = to_vector(feature)
        return Captured({"feature": feature, "embedding": embedding, "logits": self.classifier(embedding)})
