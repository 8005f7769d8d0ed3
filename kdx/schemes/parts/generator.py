"""A generator of images from noise."""

from __future__ import annotations

import math

from torch import Tensor, nn
from typing_extensions import override

__all__ = ["ImageGenerator"]


class ImageGenerator(nn.Module):
    """Images from noise: a linear layer, then two convolutions that each come after an upsampling by two.

    The output is normalised per channel over the batch, so images have mean 0 and variance 1.

    Args:
        shape: channels, height and width of an image.
        noise: length of the noise vector.
        width: channels of the first feature map; later ones have half.

    Raises:
        ValueError: the shape is not that of an image.

    Example:
        >>> import torch
        >>> ImageGenerator((1, 28, 28), noise=10, width=8)(torch.zeros(2, 10)).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(self, shape: tuple[int, int, int], *, noise: int = 100, width: int = 64) -> None:
        super().__init__()
        if len(shape) != 3:
            raise ValueError(f"shape must be (channels, height, width), got {tuple(shape)}; give your own generator")
        channels, height, width_of_image = shape
        self.noise = noise
        self.start = (width, math.ceil(height / 4), math.ceil(width_of_image / 4))
        self.project = nn.Linear(noise, math.prod(self.start))
        self.layers = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Upsample((height, width_of_image)),
            nn.Conv2d(width, max(width // 2, 1), 3, padding=1),
            nn.BatchNorm2d(max(width // 2, 1)),
            nn.LeakyReLU(0.2),
            nn.Conv2d(max(width // 2, 1), channels, 3, padding=1),
            nn.BatchNorm2d(channels, affine=False),
        )

    @override
    def forward(self, noise: Tensor) -> Tensor:
        """``[N, noise]`` -> ``[N, C, H, W]``."""
        images: Tensor = self.layers(self.project(noise).unflatten(1, self.start))
        return images
