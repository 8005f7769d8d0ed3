"""softmax_kl in C++ on a CPU: the launcher of csrc/cpu/softmax_kl.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from kdx.ops._dispatch import native
from kdx.ops.softmax_kl.launch import accumulation, check, check_upstream

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # csrc/include/kdx/dtype.h


def unsupported(student: Tensor, teacher: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    return None if student.dtype in DTYPES else f"no {student.dtype} kernel"


def forward(
    student: Tensor,  # [O, C, I]
    teacher: Tensor,  # [O, C, I]
    kl_rows: Tensor | None,  # [O * I]
    labels: Tensor | None,  # [O * I]
    ce_rows: Tensor | None,  # [O * I]
    temperature: float,
    divergence: int,
    beta: float,
    kl_scale: float,
    ce_scale: float,
    reduce: bool,
    grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Row losses or their sum, and the gradient with respect to the student; README.md section "Backends"."""
    O, C, I = student.shape  # noqa: E741
    check(student, teacher, kl_rows, labels, ce_rows)
    loss = torch.empty(() if reduce else (O, I), dtype=accumulation(student))
    out = torch.empty_like(student) if grad else None
    native("cpu").softmax_kl(
        student.data_ptr(),
        *student.stride(),
        teacher.data_ptr(),
        *teacher.stride(),
        *((0, 0, 0, 0) if out is None else (out.data_ptr(), *out.stride())),
        loss.data_ptr(),
        0 if kl_rows is None else kl_rows.data_ptr(),
        0 if labels is None else labels.data_ptr(),
        0 if ce_rows is None else ce_rows.data_ptr(),
        O,
        C,
        I,
        temperature,
        beta,
        kl_scale,
        ce_scale,
        DTYPES[student.dtype],
        divergence,
        reduce,
        torch.get_num_threads(),
    )
    return loss, out


def scale_grad(grad: Tensor, upstream: Tensor) -> Tensor:
    """``grad * upstream`` in a new tensor, rounded once."""
    check_upstream(grad, upstream)
    out = torch.empty_like(grad)
    if grad.stride() != out.stride():
        grad = grad.contiguous()
        out = torch.empty_like(grad)
    native("cpu").scale_grad(
        grad.data_ptr(), upstream.data_ptr(), out.data_ptr(), grad.numel(), DTYPES[grad.dtype], torch.get_num_threads()
    )
    return out
