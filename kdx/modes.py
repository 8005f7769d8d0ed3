"""Models in evaluation mode, and models whose buffers stay as they are, within a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["borrowed_buffers", "evaluating", "unchanged_buffers"]


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
def borrowed_buffers(model: nn.Module) -> Iterator[None]:
    """Lets a model compute with copies of its buffers, so that its own stay as they are and a graph may outlive it."""
    own = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    copies: dict[int, torch.Tensor] = {}
    for module, name, buffer in own:
        if buffer is not None:
            module._buffers[name] = copies.setdefault(id(buffer), buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in own:
            module._buffers[name] = buffer


@contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Restores the buffers of a model afterwards: a forward pass in training mode moves those of BatchNorm."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    yield
    with torch.no_grad():
        for name, buffer in before.items():
            model.get_buffer(name).copy_(buffer)
