"""Squared distances in Triton: the launch of the kernel of triton_kernels.py."""

from __future__ import annotations

import torch
from torch import Tensor

from kdx.ops._dtypes import SINGLE, no_kernel
from kdx.ops._launch import on
from kdx.ops._pairwise_sq_dist import triton_kernels


def unsupported(x: Tensor, y: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    return no_kernel(SINGLE, x, y)


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
    with on(x.device):
        triton_kernels.square_distances[(-(-m // tile), -(-n // tile))](
            *(x, *x.stride(), y, *y.stride(), x.shape[1], out, n, m),
            TILE=tile,
            BD=8,
            num_warps=2 if tile == 16 else 4,
        )
    return out
