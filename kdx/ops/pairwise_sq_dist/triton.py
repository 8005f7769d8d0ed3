"""Squared distances in Triton: the launch of the kernel in kdx/ops/rkd/triton_kernels.py."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from kdx.ops.rkd import triton_kernels


def unsupported(x: Tensor, y: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    if torch.float64 in (x.dtype, y.dtype):
        return "no float64 kernel; the backends cpu and reference compute in float64"
    return None


def forward(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
) -> Tensor:
    """The squared distances ``[N, M]`` in float32."""
    n, m = x.shape[0], y.shape[0]
    out = torch.empty((n, m), dtype=torch.float32, device=x.device)
    if out.numel() == 0:
        return out
    tile = 16 if max(n, m) <= 512 else 32
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        triton_kernels.square_distances[(-(-m // tile), -(-n // tile))](
            *(x, *x.stride(), y, *y.stride(), x.shape[1], out, n, m),
            TILE=tile,
            BD=8,
            num_warps=2 if tile == 16 else 4,
        )
    return out
