"""Queries, keys and values of torch's attention, which no module of its own gives."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from kdx.errors import CaptureError

__all__ = ["check_attention", "projections_of"]


def check_attention(tap: str, module: nn.Module) -> None:
    """Raises unless a module projects to queries, keys and values in one product.

    Raises:
        CaptureError: it is no ``torch.nn.MultiheadAttention``, or one whose keys or values have another width.
    """
    if not isinstance(module, nn.MultiheadAttention):
        raise CaptureError(
            f"tap {tap!r} asks for the queries, keys and values of a torch.nn.MultiheadAttention, and the module is "
            f"{type(module).__name__}; of other attention tap the modules that give them"
        )
    if not module._qkv_same_embed_dim:
        raise CaptureError(
            f"tap {tap!r} asks for queries, keys and values side by side, and the attention has kdim={module.kdim} and "
            f"vdim={module.vdim}; tap attention whose keys and values are as wide as its queries"
        )


def projections_of(tap: str, module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Queries, keys and values side by side, ``[N, L, 3 D]`` (``[L, N, 3 D]`` without ``batch_first``).

    Args:
        tap: as messages name it.
        module: the attention; see :func:`check_attention`.
        args: what it is called with.
        kwargs: likewise.

    Raises:
        CaptureError: keys or values come from another sequence.
    """
    given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
    query: Tensor = given["query"]
    if given["key"] is not query or given["value"] is not query:
        raise CaptureError(
            f"tap {tap!r} asks for queries, keys and values of one sequence, and the attention is called with keys or "
            "values of another; tap self-attention"
        )
    return F.linear(query, module.in_proj_weight, module.in_proj_bias)
