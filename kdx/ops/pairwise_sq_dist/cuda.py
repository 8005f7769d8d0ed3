"""Squared distances in CUDA C++: the launcher of csrc/cuda/rkd_measure.cu, and of its host emulation in the tests."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from kdx.ops._dispatch import native

DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}  # csrc/include/kdx/dtype.h


def unsupported(x: Tensor, y: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    other = next((points.dtype for points in (x, y) if points.dtype not in DTYPES), None)
    return None if other is None else f"no {other} kernel; the backends cpu and reference compute in float64"


def forward(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
) -> Tensor:
    """The squared distances ``[N, M]`` in float32."""
    out = torch.empty((x.shape[0], y.shape[0]), dtype=torch.float32, device=x.device)
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        native("cuda").pairwise_sq_dist(
            (x.data_ptr(), DTYPES[x.dtype], x.shape[1], *x.stride()),
            x.shape[0],
            (y.data_ptr(), DTYPES[y.dtype], y.shape[1], *y.stride()),
            y.shape[0],
            out.data_ptr(),
            torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0,
        )
    return out
