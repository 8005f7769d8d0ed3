"""A small model and a small task for it, which schemes and components are tried on."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from kdx.batch import Batch

__all__ = ["toy_batches", "toy_model", "toy_teacher"]


def toy_model(width: int = 4, *, classes: int = 3, seed: int = 0) -> nn.Sequential:
    """A CNN with BatchNorm and dropout on images ``[N, 1, 8, 8]``.

    Args:
        width: channels of its layer.
        classes: number of classes C; logits are ``[N, C]``.
        seed: of its weights; the global generator is left alone.

    Returns:
        A model with the layers ``conv``, ``norm``, ``relu``, ``pool``, ``flat``, ``drop`` and ``fc``, all of them taps.

    Example:
        >>> toy_model()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 3])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[tuple[str, nn.Module]] = [
            ("conv", nn.Conv2d(1, width, 3, padding=1)),
            ("norm", nn.BatchNorm2d(width)),
            ("relu", nn.ReLU()),
            ("pool", nn.AdaptiveAvgPool2d(1)),
            ("flat", nn.Flatten()),
            ("drop", nn.Dropout(0.1)),
            ("fc", nn.Linear(width, classes)),
        ]
        return nn.Sequential(OrderedDict(layers))


def toy_batches(count: int = 4, *, rows: int = 12, classes: int = 3, seed: int = 0) -> list[Batch]:
    """Batches of images ``[rows, 1, 8, 8]`` whose brightness is their class, so that :func:`toy_model` learns them.

    Example:
        >>> batch = toy_batches()[0]
        >>> batch.inputs.shape, batch.targets[:4].tolist(), batch.index[:2].tolist()
        (torch.Size([12, 1, 8, 8]), [0, 1, 2, 0], [0, 1])
    """
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for number in range(count):
        targets = torch.arange(rows) % classes
        inputs = torch.randn(rows, 1, 8, 8, generator=generator) + targets[:, None, None, None]
        batches.append(Batch(inputs, targets, torch.arange(rows) + number * rows))
    return batches


def toy_teacher(*, classes: int = 3, seed: int = 0) -> nn.Sequential:
    """A CNN on images ``[N, 1, 8, 8]`` that can lose channels, layers and rank: what derivations are tried on.

    Example:
        >>> toy_teacher()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 3])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(3)]
        layers: list[tuple[str, nn.Module]] = [
            ("stem", nn.Conv2d(1, 16, 3, padding=1)),
            ("relu", nn.ReLU()),
            ("body", nn.Sequential(*blocks)),
            ("pool", nn.AdaptiveAvgPool2d(1)),
            ("flat", nn.Flatten()),
            ("hidden", nn.Linear(16, 32)),
            ("act", nn.ReLU()),
            ("fc", nn.Linear(32, classes)),
        ]
        return nn.Sequential(OrderedDict(layers))
