"""topk_kl in C++ on a CPU: the launcher of csrc/cpu/topk_kl.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from kdx.ops._dtypes import CODES, accumulator, no_kernel
from kdx.ops._launch import address, check_divergence
from kdx.ops._linear_kl.call import Options, Rows
from kdx.ops._native import native
from kdx.ops._topk_kl.launch import neighbours
from kdx.ops._topk_kl.targets import listed_twice


def unsupported(student: Tensor, *_: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    return no_kernel(CODES, student)


def forward(
    student: Tensor, ids: Tensor, known: Tensor, rows: Rows, options: Options, *, grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Row losses ``[N]`` and the gradient ``[N, V]`` of their sum in the dtype of the logits."""
    student, ids, known, rows = neighbours(student, ids, known, rows)
    N, C = student.shape
    loss = torch.empty(N, dtype=accumulator(student))
    out = torch.empty((N, C), dtype=student.dtype) if grad else None
    topk_kl = native("cpu", "topk_kl")
    check_divergence(native("cpu"), options.divergence)
    twice = topk_kl(
        *(student.data_ptr(), student.stride(0), ids.data_ptr(), known.data_ptr(), rows.kl.data_ptr()),
        *(address(rows.labels), address(rows.ce), address(out), loss.data_ptr(), N, ids.shape[1], C),
        *(options.temperature, options.beta, options.kl_scale, options.ce_scale),
        *(CODES[student.dtype], options.divergence, options.tail, torch.get_num_threads()),
    )
    if twice >= 0:
        raise listed_twice()
    return loss, out
