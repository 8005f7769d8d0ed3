"""The tensors in PyTorch's packed objects, which hold the weights of quantised layers for one backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdx.errors import CountError

__all__ = ["unpacked"]


def unpacked(value: Any) -> list[Tensor]:
    """All tensors in a packed object, or in a tuple, list or mapping that may hold such objects, in their order.

    Args:
        value: an entry of the state dict of a quantised layer; what is neither, such as a dtype or None, has none.

    Raises:
        CountError: a packed object does not say what it holds.
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, torch.ScriptObject):
        try:
            value = value.__getstate__()  # what torch.save would write of it
        except Exception as error:
            raise CountError(
                f"cannot be counted: a packed object of PyTorch ({value}) does not say which weights it holds ({error})"
            ) from error
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for each in value for tensor in unpacked(each)] if isinstance(value, tuple | list) else []
