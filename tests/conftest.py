"""Small models and data that many tests use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdx.batch import Batch

# Without a GPU the tests run Triton kernels in its interpreter. Triton reads this when it is imported, which any
# library may do, so it is set before pytest imports the first test.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def small_net(width: int = 4, classes: int = 3) -> nn.Sequential:
    """A CNN with BatchNorm and dropout on 1x8x8 images; module names are 'conv', 'norm', 'pool', 'drop', 'fc'."""
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(1, width, 3, padding=1))
    net.add_module("norm", nn.BatchNorm2d(width))
    net.add_module("relu", nn.ReLU())
    net.add_module("pool", nn.AdaptiveAvgPool2d(1))
    net.add_module("flat", nn.Flatten())
    net.add_module("drop", nn.Dropout(0.2))
    net.add_module("fc", nn.Linear(width, classes))
    return net


@pytest.fixture
def net() -> Callable[..., nn.Sequential]:
    """Builds :func:`small_net` models."""
    return small_net


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """96 images in three classes that a small net can tell apart."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(96) % 3
    inputs = torch.randn(96, 1, 8, 8, generator=generator) + targets[:, None, None, None]
    return inputs, targets


@pytest.fixture
def loader(images: tuple[torch.Tensor, torch.Tensor]) -> DataLoader[tuple[torch.Tensor, ...]]:
    """The images in shuffled batches of 16."""
    return DataLoader(TensorDataset(*images), batch_size=16, shuffle=True)


@pytest.fixture
def batch(images: tuple[torch.Tensor, torch.Tensor]) -> Batch:
    """The first 16 images."""
    inputs, targets = images
    return Batch(inputs[:16], targets[:16], torch.arange(16))
