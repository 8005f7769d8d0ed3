"""Tensors that were made under ``torch.inference_mode``, which cannot be used where gradients are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["inference_tensors", "usable"]


def usable(value: Any) -> Any:
    """The same tensor, or mapping, tuple or list of them, with clones of those made under ``torch.inference_mode``.

    Autograd refuses to save such tensors. What holds none is handed back as it is; so is everything within
    ``torch.inference_mode``, and while ``torch.compile`` traces.
    """
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or not _holds_any(value):
        return value
    return _cloned(value)


def inference_tensors(model: nn.Module) -> list[str]:
    """Names of a model's parameters and buffers that were made under ``torch.inference_mode``: outside of it nothing
    can be written into them, and no gradient can pass an operation that needs them.
    """
    named = (*model.named_parameters(), *model.named_buffers())
    return [name for name, tensor in named if tensor.is_inference()]


def _holds_any(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_inference()
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return False
    return any(_holds_any(item) for item in value)


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, Mapping):
        return {key: _cloned(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [_cloned(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
