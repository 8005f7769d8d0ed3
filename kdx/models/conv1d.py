"""A plain convolutional net for series."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from kdx.models.shape import check_positive, check_series

__all__ = ["ConvNet1d"]


class ConvNet1d(nn.Sequential):
    """Stages of one convolution over time; every stage halves the series, every further one doubles the channels.

    Taps: ``stage1`` .. ``stage<stages>`` ``[N, width * 2**(k-1), L / 2**k]``, ``avgpool`` ``[N, D]`` (the embedding,
    ``D = width * 2**(stages-1) * grid``), ``fc`` (the outputs). On windows of one channel with three outputs
    ``ConvNet1d(width=16, stages=4)`` has 57,395 parameters, ``ConvNet1d(width=4, stages=2)`` 399.

    Args:
        width: channels of the first stage.
        stages: number of stages.
        kernel: values that a convolution sees, odd.
        grid: parts of the time that the last stage is averaged into; 1 is global average pooling, more keep when a
            feature was.
        num_classes: number of outputs.
        input_shape: channels and length of a series, the length at least ``2**stages``. Longer series than stated work
            too.

    Raises:
        ValueError: a size is too small, or ``kernel`` is even.

    Example:
        >>> import torch
        >>> from kdx.models.conv1d import ConvNet1d
        >>> ConvNet1d(num_classes=3, input_shape=(1, 128))(torch.zeros(2, 1, 128)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        width: int = 8,
        *,
        stages: int = 3,
        kernel: int = 5,
        grid: int = 8,
        num_classes: int = 1,
        input_shape: tuple[int, ...] = (1, 128),
    ) -> None:
        check_positive(width=width, stages=stages, kernel=kernel, grid=grid)
        check_series(input_shape, num_classes, smallest=2**stages)
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that the length is kept; got {kernel}")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = input_shape[0]
        for k in range(stages):
            layers[f"stage{k + 1}"] = nn.Sequential(
                nn.Conv1d(channels, width * 2**k, kernel, padding=kernel // 2, bias=False),
                nn.BatchNorm1d(width * 2**k),
                nn.ReLU(),
                nn.MaxPool1d(2),
            )
            channels = width * 2**k
        layers["avgpool"] = nn.Sequential(nn.AdaptiveAvgPool1d(grid), nn.Flatten())
        layers["fc"] = nn.Linear(channels * grid, num_classes)
        super().__init__(layers)
