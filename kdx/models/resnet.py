"""Residual nets for small images: resnet8, 20, 32, 44, 56 of any width."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdx.models.shape import check_positive, check_shape

__all__ = ["ResNet"]


class ResNet(nn.Module):
    """The residual net for CIFAR (He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2).

    One 3x3 convolution, three groups of ``(depth - 2) / 6`` basic blocks with 16, 32 and 64 channels times ``width``,
    average pooling, a linear classifier. Shortcuts have no parameters (the paper's option A): where a group halves the
    image, they take every second pixel and pad the new channels with zeros.

    Taps: ``conv1``, ``layer1`` .. ``layer3``, blocks ``layer3.1`` and their ``layer3.1.conv2``, ``avgpool``
    ``[N, 64 * width]`` (the embedding), ``fc`` (the logits). On 1x28x28 images with ten classes there are 75,002
    parameters at depth 8, 269,434 at 20, 463,866 at 32, 658,298 at 44 and 852,730 at 56; on 3x32x32 images, 288 more.

    Args:
        depth: number of layers with weights, ``6 n + 2``.
        width: factor on the channels.
        num_classes: number of logits.
        input_shape: channels, height and width of an image. Other heights and widths than stated work too.

    Raises:
        ValueError: ``depth`` is not ``6 n + 2``, or a size is too small.

    Example:
        >>> import torch
        >>> from kdx.models.resnet import ResNet
        >>> teacher = ResNet(20, input_shape=(3, 32, 32))
        >>> teacher(torch.zeros(2, 3, 32, 32)).shape, sum(p.numel() for p in teacher.parameters())
        (torch.Size([2, 10]), 269722)
    """

    def __init__(
        self,
        depth: int = 8,
        *,
        width: int = 1,
        num_classes: int = 10,
        input_shape: tuple[int, int, int] = (1, 28, 28),
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6 n + 2, such as 8, 20, 32, 44 or 56; got {depth}")
        check_positive(width=width)
        check_shape(input_shape, num_classes)
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(input_shape[0], 16 * width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16 * width)
        self.layer1 = _group(16 * width, 16 * width, blocks, stride=1)
        self.layer2 = _group(16 * width, 32 * width, blocks, stride=2)
        self.layer3 = _group(32 * width, 64 * width, blocks, stride=2)
        self.avgpool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(64 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, C, H, W]``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters.

    Args:
        channels: input channels.
        width: output channels, at least ``channels``.
        stride: of the first convolution and the shortcut.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        before = (width - channels) // 2
        # pads the last three dimensions, channels among them; a module, so that a narrower student can change it
        self.pad = nn.ZeroPad3d((0, 0, 0, 0, before, width - channels - before)) if width > channels else None

    def forward(self, x: Tensor) -> Tensor:
        """``[N, channels, h, w]`` to ``[N, width, h / stride, w / stride]``, rounded up."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.pad is not None:
            shortcut = self.pad(shortcut)
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + shortcut)


def _group(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))
