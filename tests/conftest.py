"""Small models and data that many tests use."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdx.batch import Batch
from kdx.datasets.fashion import FILES
from kdx.registry import default_plugins

# Without a GPU the tests run Triton kernels in its interpreter. Triton reads this when it is imported, which any
# library may do, so it is set before pytest imports the first test.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks as slow the cases that a marker ``quick`` leaves out.

    ``@pytest.mark.quick(backend="triton", std=[3.0])``: of the cases of this backend (of all without one) those with
    these values are quick, every other is slow; ``backend="triton"`` alone makes all of that backend slow.
    """
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    for mark in item.iter_markers("quick"):
        wanted = dict(mark.kwargs)
        if (backend := wanted.pop("backend", None)) and parameters["backend_name"] != backend:
            continue
        if not wanted or any(parameters[name] not in values for name, values in wanted.items()):
            item.add_marker(pytest.mark.slow)


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
def plugged() -> Iterator[Callable[[object, str], None]]:
    """``plugged(plugin, name)``: that plugin beside kdx's own, for the length of a test."""
    plugins, added = default_plugins(), []

    def plug(plugin: object, name: str) -> None:
        plugins.register(plugin, name)
        added.append((plugin, name))

    yield plug
    for plugin, name in added:
        plugins.manager.unregister(plugin)
        plugins.infos = [info for info in plugins.infos if info.name != name]
    plugins._components = {}


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """96 images in three classes that a small net can tell apart."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(96) % 3
    inputs = torch.randn(96, 1, 8, 8, generator=generator) + targets[:, None, None, None]
    return inputs, targets


@pytest.fixture(scope="session")
def fashion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fashion-MNIST as its four files, 750 training and 150 test images: evaluating all takes longer than training.

    For recipes as ``data.dataset={"name": "fashion-mnist", "root": str(fashion_folder)}``.
    """
    folder = tmp_path_factory.mktemp("fashion-mnist")
    with resources.files("kdx").joinpath("data", "fashion_mnist.npz").open("rb") as file, np.load(file) as embedded:
        for split, rows in (("train", 750), ("test", 150)):
            for name, kind in zip(FILES[split], ("images", "labels"), strict=True):
                values = embedded[f"{split}_{kind}"][:rows]
                header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
                (folder / name).write_bytes(gzip.compress(header + values.tobytes()))
    return folder


@pytest.fixture
def loader(images: tuple[torch.Tensor, torch.Tensor]) -> DataLoader[tuple[torch.Tensor, ...]]:
    """The images in shuffled batches of 16."""
    return DataLoader(TensorDataset(*images), batch_size=16, shuffle=True)


@pytest.fixture
def batch(images: tuple[torch.Tensor, torch.Tensor]) -> Batch:
    """The first 16 images."""
    inputs, targets = images
    return Batch(inputs[:16], targets[:16], torch.arange(16))
