"""What the launchers of all backends check before an address goes to a kernel: kernels read plain arrays."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accumulation", "check", "check_upstream"]


def accumulation(x: Tensor) -> torch.dtype:
    """The dtype of losses and coefficients for logits ``x``."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check(
    student: Tensor, teacher: Tensor, kl_rows: Tensor | None, labels: Tensor | None, ce_rows: Tensor | None
) -> None:
    """Raise ValueError unless the teacher is like the student, and the others hold one number for each of its rows."""
    if teacher.shape != student.shape or teacher.dtype != student.dtype or teacher.device != student.device:
        raise ValueError(
            f"teacher: expected {tuple(student.shape)} {student.dtype} on {student.device} as the student is, "
            f"got {tuple(teacher.shape)} {teacher.dtype} on {teacher.device}"
        )
    if kl_rows is not None:
        _check_rows("kl_rows", kl_rows, accumulation(student), student)
    if labels is not None:
        _check_rows("labels", labels, torch.int64, student)
    if ce_rows is not None:
        _check_rows("ce_rows", ce_rows, accumulation(student), student)


def _check_rows(name: str, tensor: Tensor, dtype: torch.dtype, like: Tensor) -> None:
    rows = like.shape[0] * like.shape[2]
    if tensor.dtype != dtype or tensor.device != like.device or tensor.numel() != rows or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: expected {rows} contiguous {dtype} on {like.device}, got {tuple(tensor.shape)} {tensor.dtype} "
            f"with strides {tensor.stride()} on {tensor.device}"
        )


def check_upstream(grad: Tensor, upstream: Tensor) -> None:
    """Raise ValueError unless ``upstream`` is one number in the dtype that `scale_grad` reads."""
    if upstream.dtype != accumulation(grad) or upstream.device != grad.device or upstream.numel() != 1:
        raise ValueError(
            f"upstream: expected one {accumulation(grad)} on {grad.device}, "
            f"got {tuple(upstream.shape)} {upstream.dtype} on {upstream.device}"
        )
