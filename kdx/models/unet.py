"""A small U-Net for the class of every pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx.models.shape import check_positive, check_shape

__all__ = ["UNet"]


class UNet(nn.Module):
    """A U-Net: an encoder that halves the image, a decoder that doubles it again and sees the encoder's stages.

    After Ronneberger et al. 2015 (https://arxiv.org/abs/1505.04597), with padded convolutions, batch normalisation and
    nearest-neighbour upsampling, so that the output has the resolution of the input, whatever its size.

    Taps: ``down1`` .. ``down<stages>`` ``[N, width * 2**(k-1), h / 2**(k-1), w / 2**(k-1)]`` of ``h = H / stride`` and
    ``w = W / stride``, ``up<stages-1>`` .. ``up1`` (shapes of the ``down`` of the same number), ``fc`` (the logits
    ``[N, num_classes, h, w]``, before they are brought to the resolution of the input). On one grey channel with eleven
    classes ``UNet(width=16)`` has 242,955 parameters, ``UNet(width=4, stages=3)`` 3,771.

    Args:
        width: channels of the first stage; each further one has twice as many.
        stages: number of resolutions.
        depth: convolutions in each stage.
        stride: of the first convolution; above 1 the whole net works on a smaller image, and its logits are
            interpolated linearly to the size of the input: a fourth of the work for 2.
        num_classes: number of logits of a pixel.
        input_shape: channels, height and width of an image; height and width at least ``stride * 2**(stages - 1)``.
            Other sizes than stated work too.

    Raises:
        ValueError: a size is too small.

    Example:
        >>> import torch
        >>> from kdx.models.unet import UNet
        >>> UNet(width=4, stages=3, num_classes=11)(torch.zeros(2, 1, 56, 56)).shape
        torch.Size([2, 11, 56, 56])
    """

    def __init__(
        self,
        width: int = 8,
        *,
        stages: int = 4,
        depth: int = 1,
        stride: int = 1,
        num_classes: int = 10,
        input_shape: tuple[int, int, int] = (1, 28, 28),
    ) -> None:
        super().__init__()
        check_positive(width=width, stages=stages, depth=depth, stride=stride)
        check_shape(input_shape, num_classes, smallest=stride * 2 ** (stages - 1))
        self.stages, self.stride = stages, stride
        channels = input_shape[0]
        for k in range(1, stages + 1):
            self.add_module(f"down{k}", _stage(channels, width * 2 ** (k - 1), depth, stride if k == 1 else 1))
            channels = width * 2 ** (k - 1)
        for k in range(stages - 1, 0, -1):
            self.add_module(f"up{k}", _stage(width * 2**k + width * 2 ** (k - 1), width * 2 ** (k - 1), depth))
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes, H, W]`` of images ``[N, C, H, W]``."""
        size = x.shape[-2:]
        seen = []
        for k in range(1, self.stages + 1):
            x = self.get_submodule(f"down{k}")(x if k == 1 else self.pool(x))
            seen.append(x)
        for k in range(self.stages - 1, 0, -1):
            skip = seen[k - 1]
            x = F.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = self.get_submodule(f"up{k}")(torch.cat((skip, x), 1))
        logits: Tensor = self.fc(x)
        return logits if self.stride == 1 else F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _stage(channels: int, width: int, depth: int, stride: int = 1) -> nn.Sequential:
    """``depth`` times a 3x3 convolution, the first of which may stride, batch normalisation and ReLU."""
    layers: list[nn.Module] = []
    for k in range(depth):
        step = stride if k == 0 else 1
        layers += [nn.Conv2d(channels, width, 3, step, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers)
