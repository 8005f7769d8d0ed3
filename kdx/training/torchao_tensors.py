"""Quantised tensors of torchao in safetensors, in the form that torchao and transformers write and read.

The file holds their parts as plain tensors, and their classes and settings as JSON in its metadata, from which torchao
builds the classes of a list of its own (https://docs.pytorch.org/ao/stable/, ``torchao.prototype.safetensors``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdx.errors import CheckpointError, DamagedError

__all__ = ["fitted", "flattened", "form", "is_torchao", "rebuilt"]

_NAMES = "tensor_names"
"""Key of the metadata with the names of the quantised tensors; torchao's."""


def is_torchao(tensor: object) -> bool:
    """Whether a tensor is of a class of torchao."""
    return isinstance(tensor, Tensor) and type(tensor).__module__.startswith("torchao.")


def form(tensor: Tensor) -> str | None:
    """The class and the settings of a tensor of torchao, as JSON; None of any other.

    Raises:
        CheckpointError: torchao does not write this class.
    """
    if not is_torchao(tensor):
        return None
    return flattened({"one.tensor": tensor})[1]["one.tensor"]


def fitted(tensor: Tensor, own: Tensor) -> Tensor:
    """A tensor of torchao with the very settings of one of the same :func:`form`: JSON made lists of tuples."""
    kind: Any = type(own)
    names, settings = own.__tensor_flatten__()  # type: ignore[attr-defined]  # of every such class
    parts = {name: getattr(tensor, name) for name in names}
    found: Tensor = kind.__tensor_unflatten__(parts, settings, own.size(), own.stride())
    return found


def flattened(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The same tensors with those of torchao taken apart, and the metadata that :func:`rebuilt` needs.

    Raises:
        CheckpointError: torchao does not write a class of its own; it is named.
    """
    quantised = {_dotted(name): tensor for name, tensor in tensors.items() if is_torchao(tensor)}
    if not quantised:
        return dict(tensors), {}
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    for name, tensor in quantised.items():
        try:
            flatten_tensor_state_dict({name: tensor})
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"weights: {name.removeprefix('.')} is a {type(tensor).__name__}, which torchao does not write as "
                f"safetensors ({error}); quantise with Int8Tensor or IntxUnpackedToInt8Tensor, as "
                "Int8WeightOnlyConfig and IntxWeightOnlyConfig do, or write the weights before they are quantised"
            ) from error
    parts, metadata = flatten_tensor_state_dict(quantised)
    plain = {name: tensor for name, tensor in tensors.items() if not is_torchao(tensor)}
    return plain | parts, metadata


def rebuilt(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a file, with those of torchao put together again; the inverse of :func:`flattened`.

    Args:
        tensors: as they lie in the file.
        metadata: of the file; without torchao's nothing is done.
        path: of the file, for messages.

    Raises:
        CheckpointError: torchao is not installed.
        DamagedError: the metadata do not fit the tensors, or name something else than settings of a tensor.
    """
    if _NAMES not in metadata:
        return dict(tensors)
    try:
        from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict
    except ModuleNotFoundError as error:
        raise CheckpointError(f"weights: {path} holds quantised tensors of torchao: pip install torchao") from error
    try:
        names = json.loads(metadata[_NAMES])
        for name in names:
            _check(json.loads(metadata[name]))
        found, left = unflatten_tensor_state_dict(dict(tensors), dict(metadata))
        if lacking := [name for name in names if name not in found]:
            raise ValueError(f"a part of {lacking[0]} is missing")
    except Exception as error:  # of whatever a class makes of wrong settings
        raise DamagedError(
            f"{path} is damaged: its quantised tensors cannot be put together ({error}); get it again from its source"
        ) from error
    return {name.removeprefix("."): tensor for name, tensor in (left | found).items()}


def _check(value: Any) -> None:
    """Refuses a dtype that is none: torchao would hand on any attribute of torch of that name."""
    if isinstance(value, list):
        for each in value:
            _check(each)
    elif isinstance(value, dict):
        if value.get("_type") == "torch.dtype" and not isinstance(
            getattr(torch, str(value.get("_data")), None), torch.dtype
        ):
            raise ValueError(f"{value.get('_data')!r} is no dtype")
        for each in value.values():
            _check(each)


def _dotted(name: str) -> str:
    """A name as torchao wants it, which takes those of a module alone."""
    return name if "." in name else f".{name}"
