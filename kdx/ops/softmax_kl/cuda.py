"""softmax_kl in CUDA C++: the launcher of csrc/cuda/softmax_kl.cu, and of its host emulation in the tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdx.ops import _workspace
from kdx.ops._dispatch import native
from kdx.ops.softmax_kl.launch import accumulation, check, check_upstream

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # csrc/include/kdx/dtype.h


def unsupported(student: Tensor, teacher: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    return None if student.dtype in DTYPES else f"no {student.dtype} kernel"


def _strided(tensor: Tensor | None) -> tuple[int, int, int, int]:
    if tensor is None:
        return 0, 0, 0, 0
    o, c, i = tensor.stride()
    return tensor.data_ptr(), o, c, i


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
    acc = accumulation(student)
    out = torch.empty_like(student) if grad else None
    if O * I == 0:
        return torch.zeros(() if reduce else (O, I), dtype=acc, device=student.device), out
    loss = torch.empty(() if reduce else (O, I), dtype=acc, device=student.device)
    module: Any = native("cuda")
    call = module.SoftmaxKl(
        _strided(student),
        _strided(teacher),
        _strided(out),
        loss.data_ptr(),
        0 if kl_rows is None else kl_rows.data_ptr(),
        0 if labels is None else labels.data_ptr(),
        0 if ce_rows is None else ce_rows.data_ptr(),
        (O, C, I),
        temperature,
        beta,
        kl_scale,
        ce_scale,
        DTYPES[student.dtype],
        divergence,
        reduce,
    )
    with torch.cuda.device_of(student):  # type: ignore[no-untyped-call]  # torch has no annotation here
        space = _workspace.zeroed(student.device, call.workspace_bytes()) if reduce else None
        module.softmax_kl(
            call,
            0 if space is None else space.data_ptr(),
            0 if space is None else space.numel(),
            _workspace.stream(student.device),
        )
    return loss, out


def scale_grad(grad: Tensor, upstream: Tensor) -> Tensor:
    """``grad * upstream`` in a new tensor, rounded once; ``upstream`` is read by the kernel, not by the host."""
    check_upstream(grad, upstream)
    out = torch.empty_like(grad)
    if grad.stride() != out.stride():  # empty_like is dense; grad was not
        grad = grad.contiguous()
        out = torch.empty_like(grad)
    if grad.numel():
        with torch.cuda.device_of(grad):  # type: ignore[no-untyped-call]  # torch has no annotation here
            native("cuda").scale_grad(
                grad.data_ptr(),
                upstream.data_ptr(),
                out.data_ptr(),
                grad.numel(),
                DTYPES[grad.dtype],
                _workspace.stream(grad.device),
            )
    return out
