"""The relational losses in C++ on a CPU: the launcher of csrc/cpu/rkd.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from kdx.ops._dispatch import native
from kdx.ops.pairwise_sq_dist.reference import compute_dtype

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # csrc/include/kdx/dtype.h
BLOCK = 0  # points per block of the pair grid; 0: csrc/include/kdx/rkd.h says how many


def unsupported(student: Tensor, teacher: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    other = next((x.dtype for x in (student, teacher) if x.dtype not in DTYPES), None)
    return None if other is None else f"no {other} kernel"


def forward(
    student: Tensor,  # [N, D_s]
    teacher: Tensor,  # [N, D_t]
    distance_weight: float,
    angle_weight: float,
    delta: float,
    student_grad: bool,
    teacher_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss and the wanted gradients, in float32 (float64 if an input is)."""
    weights = (distance_weight, angle_weight, delta)
    grad_s = grad_t = None
    if student_grad or not teacher_grad:
        loss, grad_s = _one(student, teacher, weights, student_grad)
    if teacher_grad:  # the losses are symmetric: the teacher's gradient is the student's with the two swapped
        loss, grad_t = _one(teacher, student, weights, True)
    return loss, grad_s, grad_t


def _one(
    student: Tensor, teacher: Tensor, weights: tuple[float, float, float], grad: bool
) -> tuple[Tensor, Tensor | None]:
    dtype = compute_dtype(student, teacher)
    loss = torch.empty((), dtype=dtype)
    out = torch.empty(student.shape, dtype=dtype) if grad else None
    native("cpu").rkd(
        *(student.data_ptr(), DTYPES[student.dtype], student.shape[1], *student.stride()),
        *(teacher.data_ptr(), DTYPES[teacher.dtype], teacher.shape[1], *teacher.stride()),
        *(student.shape[0], DTYPES[dtype], *weights),
        *(loss.data_ptr(), 0 if out is None else out.data_ptr(), BLOCK, torch.get_num_threads()),
    )
    return loss, out
