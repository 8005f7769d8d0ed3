"""Hashes of a teacher and of the inputs that it saw."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdx.capture import clean_name, unwrap

__all__ = ["describe", "input_digests", "teacher_hash"]

_PLAIN = (bool, int, float, str, type(None))


def teacher_hash(model: nn.Module) -> str:
    """A hash of a model's weights, buffers and architecture (its class and its printed form)."""
    model = unwrap(model)
    digest = hashlib.sha256(f"{type(model).__module__}.{type(model).__qualname__}\n{model!r}\n".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{clean_name(name)} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor.detach().cpu()))
    return digest.hexdigest()


def describe(data: Any) -> dict[str, str]:
    """Describes a data set: what lies inside its views and subsets, how many samples, which transform."""
    transform, inner = getattr(data, "transform", None), data
    while (deeper := getattr(inner, "dataset", None)) is not None:
        inner = deeper
    return {"dataset": type(inner).__qualname__, "samples": str(len(inner)), "transform": _text(transform)}


def input_digests(inputs: Any, rows: int) -> Tensor:
    """A 64-bit hash of each sample's inputs, int64 ``[N]``: of every tensor in them, bit for bit."""
    hashes = [hashlib.blake2b(digest_size=8) for _ in range(rows)]
    for tensor in _tensors(inputs):
        head = f"{tensor.dtype} {list(tensor.shape[1:])}".encode()
        for digest, row in zip(hashes, tensor.detach().cpu(), strict=True):
            digest.update(head)
            digest.update(_bytes(row))
    values = [int.from_bytes(digest.digest(), "little", signed=True) for digest in hashes]
    return torch.tensor(values, dtype=torch.int64)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for key in sorted(value) for tensor in _tensors(value[key])]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _text(transform: object) -> str:
    if transform is None:
        return "none"
    name = getattr(transform, "__qualname__", type(transform).__qualname__)
    options = {key: value for key, value in getattr(transform, "__dict__", {}).items() if isinstance(value, _PLAIN)}
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"
