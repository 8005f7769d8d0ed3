"""Squared distances in CUDA C++: the launcher of csrc/cuda/rkd_measure.cu, and of its host emulation in the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from kdx.ops._dtypes import SINGLE, no_kernel
from kdx.ops._launch import on, points, stream
from kdx.ops._native import native


def unsupported(x: Tensor, y: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    return no_kernel(SINGLE, x, y)


def forward(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
) -> Tensor:
    """The squared distances ``[N, M]`` in float32."""
    out = torch.empty((x.shape[0], y.shape[0]), dtype=torch.float32, device=x.device)
    with on(x.device):
        native("cuda").pairwise_sq_dist(points(x), x.shape[0], points(y), y.shape[0], out.data_ptr(), stream(x.device))
    return out
