"""Branches: small classifiers on the stages of a network, there during training only."""

from __future__ import annotations

from torch import nn
from typing_extensions import override

from kdx.capture import Captured
from kdx.features.adapters import BatchNorm, convolution, match, pool
from kdx.features.feature import Feature

__all__ = ["Branch"]

REDUCTION = 4


class Branch(nn.Module):
    """A bottleneck from a shallow stage to the shape of the deepest one, and a linear classifier on its pooled output.

    For maps: a 1x1 convolution to a quarter of the deepest channels, a convolution whose kernel and stride are the
    ratio of the sizes, a 1x1 convolution, each with BatchNorm and ReLU; what is left of the size is average-pooled. For
    tokens and vectors: LayerNorm, a linear layer to a quarter of the width, GELU, a linear layer. Shapes are read from
    one example of each stage.

    Args:
        shallow: what the stage gives.
        deepest: what the last stage gives.
        classes: number of logits.
    """

    def __init__(self, shallow: Feature, deepest: Feature, classes: int) -> None:
        super().__init__()
        width = deepest.channels
        hidden = max(width // REDUCTION, 1)
        self.size: tuple[int, ...] | None = None
        if not any(one.is_tokens or one.is_vector for one in (shallow, deepest)):
            given = shallow.channels_first().shape[2:]
            self.size = tuple(deepest.channels_first().shape[2:])
            if len(given) != len(self.size):
                match(shallow, deepest)  # says why they cannot be compared
            axes = len(self.size)
            ratio = [max(side // smaller, 1) for side, smaller in zip(given, self.size, strict=True)]
            self.bottleneck: nn.Module = nn.Sequential(
                convolution(shallow.channels, hidden, axes),
                BatchNorm(hidden),
                nn.ReLU(),
                convolution(hidden, hidden, axes, ratio, stride=ratio),
                BatchNorm(hidden),
                nn.ReLU(),
                convolution(hidden, width, axes),
                BatchNorm(width),
                nn.ReLU(),
            )
        else:
            inputs = shallow.channels
            self.bottleneck = nn.Sequential(
                nn.LayerNorm(inputs), nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, width)
            )
        self.classifier = nn.Linear(width, classes)
        self.to(shallow.tensor.device, shallow.tensor.dtype)

    @override
    def forward(self, shallow: Feature, deepest: Feature) -> Captured:
        """The branch's ``feature`` (shaped as the deepest), its pooled ``embedding`` and its ``logits``."""
        if self.size is None:
            source = match(shallow, deepest)[0].movedim(1, -1)
            made = self.bottleneck(source).movedim(-1, 1)
        else:
            made = pool(self.bottleneck(shallow.channels_first()), self.size)
        feature = deepest.like(made)
        embedding = feature.vector()
        values = {"feature": feature.tensor, "embedding": embedding, "logits": self.classifier(embedding)}
        return Captured(values, layouts={"feature": feature.given})
