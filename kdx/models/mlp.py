"""A multi-layer perceptron on flattened inputs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from kdx.models.shape import check_positive

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """Fully connected layers with ReLU.

    Taps: ``hidden1``, ``hidden2``, .. ``[N, hidden[k-1]]`` (after ReLU and dropout), ``fc`` (the logits). On 1x28x28
    images with ten classes ``MLP()`` has 50,890 parameters.

    Args:
        hidden: units of each hidden layer; empty for a linear classifier.
        dropout: probability that a hidden unit is dropped in training.
        num_classes: number of logits.
        input_shape: shape of one input, as ``(channels, height, width)`` of an image or ``(columns,)`` of a row of a
            table; fixed from then on.

    Raises:
        ValueError: a size is too small, or ``dropout`` is no probability.

    Example:
        >>> import torch
        >>> from kdx.models.mlp import MLP
        >>> MLP(hidden=(32, 16), input_shape=(1, 8, 8))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        hidden: Sequence[int] = (64,),
        *,
        dropout: float = 0.0,
        num_classes: int = 10,
        input_shape: tuple[int, ...] = (1, 28, 28),
    ) -> None:
        check_positive(num_classes=num_classes, input_shape=min(input_shape, default=0))
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be a probability, 0 <= dropout < 1; got {dropout}")
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        units = prod(input_shape)
        for k, size in enumerate(hidden, start=1):
            check_positive(hidden=size)
            layers[f"hidden{k}"] = nn.Sequential(nn.Linear(units, size), nn.ReLU(), nn.Dropout(dropout))
            units = size
        layers["fc"] = nn.Linear(units, num_classes)
        super().__init__(layers)
        self.input_shape = tuple(input_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of inputs ``[N, ...]`` of the stated shape."""
        if x.shape[1:] != self.input_shape:
            raise ValueError(
                f"inputs must be [N, {', '.join(map(str, self.input_shape))}], as input_shape says; got {list(x.shape)}"
            )
        for layer in self:
            x = layer(x)
        return x
