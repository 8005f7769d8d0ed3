"""Models in evaluation mode, and models whose buffers stay as they are, within a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["unchanged_buffers"]


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Puts models into evaluation mode, and every submodule back into its own mode afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Restores the buffers of a model afterwards: a forward pass in training mode moves those of BatchNorm."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    yield
    with torch.no_grad():
        for name, buffer in before.items():
            model.get_buffer(name).copy_(buffer)
