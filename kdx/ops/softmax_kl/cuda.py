"""softmax_kl in CUDA C++: the launcher of csrc/cuda/softmax_kl.cu, and of its host emulation in the tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdx.ops import _workspace
from kdx.ops._dispatch import native

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # csrc/include/kdx/dtype.h


def unsupported(student: Tensor, teacher: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    return None if student.dtype in DTYPES else f"no {student.dtype} kernel"


def _check(name: str, tensor: Tensor, dtype: torch.dtype, like: Tensor) -> int:
    """The address of a tensor of row coefficients or labels, which the kernel reads as a plain array."""
    rows = like.shape[0] * like.shape[2]
    if tensor.dtype != dtype or tensor.device != like.device or tensor.numel() != rows or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: expected {rows} contiguous {dtype} on {like.device}, got {tuple(tensor.shape)} {tensor.dtype} "
            f"with strides {tensor.stride()} on {tensor.device}"
        )
    return tensor.data_ptr()


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
    if teacher.shape != student.shape or teacher.dtype != student.dtype or teacher.device != student.device:
        raise ValueError(
            f"teacher: expected {tuple(student.shape)} {student.dtype} on {student.device} as the student is, "
            f"got {tuple(teacher.shape)} {teacher.dtype} on {teacher.device}"
        )
    acc = torch.float64 if student.dtype == torch.float64 else torch.float32
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
        0 if kl_rows is None else _check("kl_rows", kl_rows, acc, student),
        0 if labels is None else _check("labels", labels, torch.int64, student),
        0 if ce_rows is None else _check("ce_rows", ce_rows, acc, student),
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
    acc = torch.float64 if grad.dtype == torch.float64 else torch.float32
    if upstream.dtype != acc or upstream.device != grad.device or upstream.numel() != 1:
        raise ValueError(
            f"upstream: expected one {acc} on {grad.device}, "
            f"got {tuple(upstream.shape)} {upstream.dtype} on {upstream.device}"
        )
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
