"""A small net and its rows."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def small_net(width: int = 4) -> nn.Sequential:
    """A CNN on 1x8x8 images; module names are 'conv', 'norm', 'relu', 'pool', 'flat', 'fc'."""
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(1, width, 3, padding=1))
    net.add_module("norm", nn.BatchNorm2d(width))
    net.add_module("relu", nn.ReLU())
    net.add_module("pool", nn.AdaptiveAvgPool2d(1))
    net.add_module("flat", nn.Flatten())
    net.add_module("fc", nn.Linear(width, 3))
    return net


@pytest.fixture
def net() -> Callable[..., nn.Sequential]:
    """Builds :func:`small_net` models."""
    torch.manual_seed(0)
    return small_net


@pytest.fixture
def loader() -> DataLoader[tuple[torch.Tensor, ...]]:
    """96 images in three classes, in shuffled batches of 16."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(96) % 3
    inputs = torch.randn(96, 1, 8, 8, generator=generator) + targets[:, None, None, None]
    return DataLoader(TensorDataset(inputs, targets), batch_size=16, shuffle=True)
