"""A plain convolutional net in stages; the teacher and the student of the main demonstration."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from kdx.models.shape import check_positive, check_shape

__all__ = ["ConvNet"]


class ConvNet(nn.Sequential):
    """Stages of 3x3 convolutions; every stage but the last halves the image, every further one doubles the channels.

    Taps: ``stage1`` .. ``stage<stages>`` ``[N, width * 2**(k-1), h, w]``, ``avgpool`` ``[N, D]`` (the embedding,
    ``D = width * 2**(stages-1) * grid**2``), ``fc`` (the logits). The last convolution of a stage is pooled before it
    is normalised: a quarter of the work for the norm, and the same function wherever the norm's scale is positive.

    On 1x28x28 images with ten classes ``ConvNet(width=24)`` has 220,594 parameters, a teacher's size;
    ``ConvNet(width=8, stages=2, grid=7)`` has 9,122, a student's.

    Args:
        width: channels of the first stage.
        stages: number of stages.
        depth: convolutions in each stage.
        grid: cells along each side that the last stage is averaged into; 1 is global average pooling, more keep where
            in the image a feature was, which helps a shallow net on centred images.
        norm: batch normalisation after each convolution; without it the convolutions have a bias.
        num_classes: number of logits.
        input_shape: channels, height and width of an image; height and width at least ``2**(stages - 1)``. Larger
            images than stated work too.

    Raises:
        ValueError: a size is too small.

    Example:
        >>> import torch
        >>> from kdx.models.cnn import ConvNet
        >>> student = ConvNet(width=8, stages=2, grid=7)
        >>> student(torch.zeros(2, 1, 28, 28)).shape, sum(p.numel() for p in student.parameters())
        (torch.Size([2, 10]), 9122)
    """

    def __init__(
        self,
        width: int = 8,
        *,
        stages: int = 4,
        depth: int = 1,
        grid: int = 1,
        norm: bool = True,
        num_classes: int = 10,
        input_shape: tuple[int, int, int] = (1, 28, 28),
    ) -> None:
        check_positive(width=width, stages=stages, depth=depth, grid=grid)
        check_shape(input_shape, num_classes, smallest=2 ** (stages - 1))
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = input_shape[0]
        for k in range(stages):
            layers[f"stage{k + 1}"] = _stage(channels, width * 2**k, depth, norm, pool=k < stages - 1)
            channels = width * 2**k
        layers["avgpool"] = nn.Sequential(nn.AdaptiveAvgPool2d(grid), nn.Flatten())
        layers["fc"] = nn.Linear(channels * grid**2, num_classes)
        super().__init__(layers)


def _stage(channels: int, width: int, depth: int, norm: bool, pool: bool) -> nn.Sequential:
    """``depth`` convolutions, the last one pooled by two if ``pool``."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for k in range(1, depth + 1):
        layers[f"conv{k}"] = nn.Conv2d(channels if k == 1 else width, width, 3, padding=1, bias=not norm)
        if pool and k == depth:
            layers["pool"] = nn.MaxPool2d(2)
        if norm:
            layers[f"norm{k}"] = nn.BatchNorm2d(width)
        layers[f"relu{k}"] = nn.ReLU()
    return nn.Sequential(layers)
