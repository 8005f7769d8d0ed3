"""The relational losses in C++ on a CPU: the launcher of csrc/cpu/rkd.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from kdx.ops._dtypes import CODES, accumulator, no_kernel
from kdx.ops._launch import address, points
from kdx.ops._native import native

BLOCK = 0  # points per block of the pair grid; 0: csrc/include/kdx/rkd.h says how many


def unsupported(student: Tensor, teacher: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    return no_kernel(CODES, student, teacher)


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
    dtype = accumulator(student, teacher)
    loss = torch.empty((), dtype=dtype)
    out = torch.empty(student.shape, dtype=dtype) if grad else None
    native("cpu").rkd(
        *(*points(student), *points(teacher), student.shape[0], CODES[dtype], *weights),
        *(loss.data_ptr(), address(out), BLOCK, torch.get_num_threads()),
    )
    return loss, out
