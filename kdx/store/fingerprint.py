"""Hashes of a teacher and of the inputs that it saw."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdx.capture import clean_name, unwrap
from kdx.store.sequences import places_of

__all__ = ["describe", "digest_of", "input_digests", "teacher_hash", "tensor_digests"]

_PLAIN = (bool, int, float, str, type(None))


def teacher_hash(model: nn.Module) -> str:
    """A hash of a model's weights, buffers and architecture (its class and its printed form)."""
    model = unwrap(model)
    digest = hashlib.sha256(f"{type(model).__module__}.{type(model).__qualname__}\n{model!r}\n".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{clean_name(name)} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor.detach().cpu()))
    return digest.hexdigest()


def tensor_digests(model: nn.Module) -> dict[str, str]:
    """Name -> SHA-256 hash of every parameter and buffer, those that are not saved included: of dtype, shape and bytes.

    Tensors are copied to the CPU one by one; a GB takes a few seconds. Of a tensor on the meta device dtype and shape
    count.
    """
    named = (*model.named_parameters(), *model.named_buffers())
    return {clean_name(name): _tensor_digest(tensor.detach()) for name, tensor in named}


def digest_of(digests: Mapping[str, str]) -> str:
    """One hash of many, by name."""
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _tensor_digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    if tensor.device.type != "meta":
        digest.update(_bytes(tensor.cpu()))
    return digest.hexdigest()


def describe(data: Any) -> dict[str, str]:
    """Describes a data set: what lies inside its views and subsets, how many samples, which transform."""
    transform, inner = getattr(data, "transform", None), data
    while (deeper := getattr(inner, "dataset", None)) is not None:
        inner = deeper
    return {"dataset": type(inner).__qualname__, "samples": str(len(inner)), "transform": _text(transform)}


def input_digests(inputs: Any, rows: int) -> Tensor:
    """A 64-bit hash of each sample's inputs, int64 ``[N]``: of every tensor in them, bit for bit.

    Of sequences the places that hold a token count (:func:`kdx.store.sequences.places_of`), so that a sample has one
    hash however far its batch is padded, on which side, and whether a mask says that it is all there.
    """
    hashes = [hashlib.blake2b(digest_size=8) for _ in range(rows)]
    places = places_of(inputs)
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) and places is not None else None
    for tensor in _tensors(inputs):
        held = places if places is not None and tensor.shape[:2] == places.shape else None
        for number, (digest, each) in enumerate(zip(hashes, tensor.detach().cpu(), strict=True)):
            row = each if held is None else each[held[number]]
            if tensor is mask and bool((row == 1).all()):
                continue
            digest.update(f"{row.dtype} {list(row.shape)}".encode())
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


def _bytes(tensor: Tensor) -> bytes | memoryview:
    try:
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    except (RuntimeError, TypeError, NotImplementedError):  # a tensor subclass that wraps others, as quantised ones
        buffer = io.BytesIO()
        torch.save(tensor, buffer)
        return buffer.getvalue()


def _text(transform: object) -> str:
    if transform is None:
        return "none"
    name = getattr(transform, "__qualname__", type(transform).__qualname__)
    options = {key: value for key, value in getattr(transform, "__dict__", {}).items() if isinstance(value, _PLAIN)}
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"
