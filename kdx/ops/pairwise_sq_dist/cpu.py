"""Squared distances in C++ on a CPU: the launcher of csrc/cpu/rkd.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from kdx.ops._dispatch import native
from kdx.ops.pairwise_sq_dist.reference import compute_dtype

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # csrc/include/kdx/dtype.h


def unsupported(x: Tensor, y: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    other = next((points.dtype for points in (x, y) if points.dtype not in DTYPES), None)
    return None if other is None else f"no {other} kernel"


def forward(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
) -> Tensor:
    """The squared distances ``[N, M]``."""
    dtype = compute_dtype(x, y)
    out = torch.empty((x.shape[0], y.shape[0]), dtype=dtype)
    native("cpu").pairwise_sq_dist(
        *(x.data_ptr(), DTYPES[x.dtype], *x.stride()),
        *(y.data_ptr(), DTYPES[y.dtype], *y.stride()),
        *(x.shape[0], y.shape[0], x.shape[1], DTYPES[dtype]),
        *(out.data_ptr(), torch.get_num_threads()),
    )
    return out
