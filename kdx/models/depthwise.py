"""A small net of depth-wise separable convolutions."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from kdx.models.shape import check_positive, check_shape

__all__ = ["DepthwiseNet"]


class DepthwiseNet(nn.Sequential):
    """Depth-wise separable convolutions in stages (MobileNet, Howard et al. 2017, https://arxiv.org/abs/1704.04861).

    A 3x3 convolution, then stages of blocks, each a 3x3 convolution of every channel by itself and a 1x1 convolution
    across channels, both with batch normalisation and ReLU. The first block of each stage halves the image and doubles
    the channels.

    Taps: ``stem``, ``stage1`` .. ``stage<stages>`` ``[N, width * 2**k, h, w]``, blocks ``stage2.block1``, ``avgpool``
    ``[N, D]`` (the embedding), ``fc`` (the logits). On 1x28x28 images with ten classes ``DepthwiseNet()`` has 10,474
    parameters.

    Args:
        width: channels of the first convolution.
        stages: number of stages.
        depth: blocks in each stage.
        num_classes: number of logits.
        input_shape: channels, height and width of an image. Other heights and widths than stated work too.

    Raises:
        ValueError: a size is too small.

    Example:
        >>> import torch
        >>> from kdx.models.depthwise import DepthwiseNet
        >>> DepthwiseNet(width=8)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        width: int = 16,
        *,
        stages: int = 2,
        depth: int = 2,
        num_classes: int = 10,
        input_shape: tuple[int, int, int] = (1, 28, 28),
    ) -> None:
        check_positive(width=width, stages=stages, depth=depth)
        check_shape(input_shape, num_classes)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            stem=nn.Sequential(
                nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
            )
        )
        channels = width
        for k in range(1, stages + 1):
            blocks = [_block(channels, 2 * channels, stride=2)]
            blocks += [_block(2 * channels, 2 * channels, stride=1) for _ in range(depth - 1)]
            layers[f"stage{k}"] = nn.Sequential(OrderedDict((f"block{i}", b) for i, b in enumerate(blocks, start=1)))
            channels *= 2
        layers["avgpool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        layers["fc"] = nn.Linear(channels, num_classes)
        super().__init__(layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _block(channels: int, width: int, stride: int) -> nn.Sequential:
    """One depth-wise separable convolution."""
    return nn.Sequential(
        OrderedDict(
            depthwise=nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False),
            norm1=nn.BatchNorm2d(channels),
            relu1=nn.ReLU(),
            pointwise=nn.Conv2d(channels, width, 1, bias=False),
            norm2=nn.BatchNorm2d(width),
            relu2=nn.ReLU(),
        )
    )
