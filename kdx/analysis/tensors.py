"""Bytes and values that a tensor of any kind stores: dense, sparse, quantised, or of a subclass made of others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ["dense", "stored_bytes"]

_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}


def stored_bytes(tensor: Tensor) -> int:
    """The bytes that a tensor takes: of a quantised one with its scales, of a sparse one with its indices.

    Example:
        >>> stored_bytes(torch.zeros(4, 3))
        48
        >>> stored_bytes(torch.eye(4).to_sparse())  # four values, and two indices of eight bytes for each
        80
    """
    if hasattr(tensor, "full_tensor"):  # spread over ranks: of all of it
        return tensor.numel() * tensor.element_size()
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return sum(stored_bytes(getattr(tensor, name)) for name in names)
    if tensor.layout == torch.sparse_coo:
        return sum(stored_bytes(part) for part in (tensor._indices(), tensor._values()))
    if tensor.layout in _COMPRESSED:
        indices = [getattr(tensor, name)() for name in _COMPRESSED[tensor.layout]]
        return sum(stored_bytes(part) for part in (*indices, tensor.values()))
    if tensor.is_quantized:
        return _of_quantised(tensor)
    return tensor.numel() * tensor.element_size()


def dense(tensor: Tensor) -> Tensor:
    """The values that a tensor stands for, as an ordinary one."""
    found: Any = tensor.detach()
    if hasattr(found, "full_tensor"):
        found = found.full_tensor()
    if found.layout != torch.strided:
        found = found.to_dense()
    if found.is_quantized or (is_traceable_wrapper_subclass(found) and hasattr(found, "dequantize")):
        found = found.dequantize()
    elif is_traceable_wrapper_subclass(found) and hasattr(found, "to_dense"):
        found = found.to_dense()
    dense: Tensor = found
    return dense


def _of_quantised(tensor: Tensor) -> int:
    codes = tensor.numel() * tensor.element_size()
    if tensor.dtype in (torch.quint4x2, torch.quint2x4):  # several codes in a byte
        codes = -(-codes // (2 if tensor.dtype == torch.quint4x2 else 4))
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return codes + 16  # a float64 and an int64
    return codes + stored_bytes(tensor.q_per_channel_scales()) + stored_bytes(tensor.q_per_channel_zero_points())
