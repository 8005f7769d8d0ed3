"""Element types of kernels: the numbers they have across the language border, and what is added up in what."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

__all__ = ["CODES", "SINGLE", "accumulator", "no_kernel"]

CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""Dtype -> its number in csrc/include/kdx/dtype.h; every compiled kernel that computes in float64 has all of them."""
SINGLE = frozenset(CODES) - {torch.float64}
"""Dtypes of the kernels that compute in float32 alone."""


def accumulator(*tensors: Tensor) -> torch.dtype:
    """The dtype that losses, coefficients and distances of these tensors are computed in and returned.

    Example:
        >>> import torch
        >>> accumulator(torch.zeros(2, dtype=torch.bfloat16)), accumulator(torch.zeros(2), torch.zeros(2).double())
        (torch.float32, torch.float64)
    """
    for x in tensors:
        if x.dtype == torch.float64:
            return torch.float64
    return torch.float32


def no_kernel(dtypes: Collection[torch.dtype], *tensors: Tensor, float64: str = "cpu and reference") -> str | None:
    """Why kernels for ``dtypes`` cannot run these tensors, or None: what a backend's ``unsupported`` answers.

    Args:
        dtypes: those that there are kernels for.
        *tensors: those of the call.
        float64: the backends that compute in float64, where this one does not.
    """
    for x in tensors:
        if x.dtype not in dtypes:
            instead = f"; the backends {float64} compute in float64" if x.dtype == torch.float64 else ""
            return f"no {str(x.dtype).removeprefix('torch.')} kernel{instead}"
    return None
