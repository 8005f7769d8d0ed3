"""A small teacher, views of synthetic images that it looks at, and stores of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from kdx.datasets import ShiftFlip, View


class Images(Dataset):
    """40 images in five classes."""

    def __init__(self, seed: int = 3) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.targets = torch.arange(40) % 5
        self.images = torch.randn(40, 1, 6, 6, generator=generator) + self.targets[:, None, None, None]

    def __len__(self) -> int:
        return 40

    def __getitem__(self, row: int):
        return self.images[row], int(self.targets[row])


def classifier(classes: int = 7, seed: int = 5) -> nn.Sequential:
    """A network with BatchNorm and dropout; taps 'conv', 'norm', 'relu', 'fc'."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential()
        net.add_module("conv", nn.Conv2d(1, 4, 3))
        net.add_module("norm", nn.BatchNorm2d(4))
        net.add_module("relu", nn.ReLU())
        net.add_module("flat", nn.Flatten())
        net.add_module("drop", nn.Dropout(0.5))
        net.add_module("fc", nn.Linear(64, classes))
    return net


def images_view(views: int | None = 3, *, rows: object = range(5, 37), seed: int = 0, shift: int = 1) -> View:
    """Rows 5 .. 36, shifted and mirrored, with views that come again."""
    return View(Images(), rows, transform=ShiftFlip(shift, seed=seed), views=views)


def contents_of(folder: Path) -> dict[str, bytes]:
    """Each file's name and bytes."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def teacher() -> nn.Sequential:
    """The model that stores are written by."""
    return classifier()


@pytest.fixture
def view() -> View:
    """The data that stores are written of: 32 samples, 3 views."""
    return images_view()


@pytest.fixture
def make_view() -> Callable[..., View]:
    """Builds :func:`images_view`."""
    return images_view


@pytest.fixture
def make_net() -> Callable[..., nn.Sequential]:
    """Builds :func:`classifier`."""
    return classifier
