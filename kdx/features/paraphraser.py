"""The paraphraser of factor transfer, an autoencoder of maps, and the layers that a translator has too."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from typing_extensions import override

from kdx.features.adapters import convolution

__all__ = ["Paraphraser", "factor_layers"]

SLOPE = 0.1
"""Slope of the leaky ReLUs below 0, as the authors have it."""


def factor_layers(inputs: int, factors: int, axes: int = 2) -> nn.Sequential:
    """Three convolutions of side 3, each with a leaky ReLU, from ``inputs`` channels to ``factors``.

    The encoder of a paraphraser and the translator of a student are both of this form.

    Args:
        inputs: channels that come in, kept by the first convolution.
        factors: channels that go out.
        axes: of places, 1 to 3.
    """
    widths = [inputs, inputs, factors, factors]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [convolution(before, after, axes, 3, padding=1, bias=True), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """An autoencoder of feature maps; calling it gives the factor, :meth:`decode` the map again.

    Encoder and decoder are three (transposed) convolutions of side 3 with leaky ReLUs; places stay as they are.

    Args:
        channels: of the maps.
        factors: channels of the factor.
    """

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.channels = channels
        self.encoder = factor_layers(channels, factors)
        widths = [factors, factors, channels, channels]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.ConvTranspose2d(before, after, 3, padding=1), nn.LeakyReLU(SLOPE)]
        self.decoder = nn.Sequential(*layers)

    @override
    def forward(self, feature: Tensor) -> Tensor:
        """``[N, channels, H, W]`` -> ``[N, factors, H, W]``."""
        factor: Tensor = self.encoder(feature)
        return factor

    def decode(self, factor: Tensor) -> Tensor:
        """``[N, factors, H, W]`` -> ``[N, channels, H, W]``."""
        feature: Tensor = self.decoder(factor)
        return feature
