"""Squared distances in C++ on a CPU: the launcher of csrc/cpu/rkd.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from kdx.ops._dtypes import CODES, accumulator, no_kernel
from kdx.ops._native import native


def unsupported(x: Tensor, y: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    return no_kernel(CODES, x, y)


def forward(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
) -> Tensor:
    """The squared distances ``[N, M]``."""
    dtype = accumulator(x, y)
    out = torch.empty((x.shape[0], y.shape[0]), dtype=dtype)
    native("cpu").pairwise_sq_dist(
        *(x.data_ptr(), CODES[x.dtype], *x.stride()),
        *(y.data_ptr(), CODES[y.dtype], *y.stride()),
        *(x.shape[0], y.shape[0], x.shape[1], CODES[dtype]),
        *(out.data_ptr(), torch.get_num_threads()),
    )
    return out
