"""The relational losses in CUDA C++: the launchers of csrc/cuda/rkd_*.cu, and of their host emulation in the tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdx.ops._dtypes import SINGLE, no_kernel
from kdx.ops._launch import address, points, stream
from kdx.ops._native import native
from kdx.ops._rkd import pair_grid
from kdx.ops._rkd.pair_grid import Block, GradientOfBlock, Weights


def unsupported(student: Tensor, teacher: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    return no_kernel(SINGLE, student, teacher)


def forward(
    student: Tensor,  # [N, D_s]
    teacher: Tensor,  # [N, D_t]
    distance_weight: float,
    angle_weight: float,
    delta: float,
    student_grad: bool,
    teacher_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss and the wanted gradients, in float32."""
    return pair_grid.forward(
        _Stages(student.device), student, teacher, distance_weight, angle_weight, delta, student_grad, teacher_grad
    )


class _Stages:
    """`pair_grid.Stages` by CUDA kernels on the current stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.module: Any = native("cuda")
        self.stream = stream(device)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def _block(self, block: Block, n: int) -> tuple[int, int, int, int, int, bool]:
        return n, block.i0, block.ni, block.j0, block.nj, block.symmetric

    def measure(
        self, student: Tensor, teacher: Tensor, block: Block, sums: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        s, t = self._empty(block.ni, block.nj), self._empty(block.ni, block.nj)
        at = self._block(block, student.shape[0])
        part = self._empty(4, self.module.rkd_measure_programs(at)) if sums else None
        self.module.rkd_measure(
            points(student), points(teacher), at, s.data_ptr(), t.data_ptr(), address(part), self.stream
        )
        return s, t, part

    def distance_sums(self, s: Tensor, t: Tensor, s_means: Tensor, t_means: Tensor, delta: float) -> Tensor:
        out = self._empty(2, self.module.rkd_distance_programs(s.numel()))
        self.module.rkd_distance(
            *(s.data_ptr(), t.data_ptr(), s.numel(), s_means.data_ptr(), t_means.data_ptr(), s_means.shape[1]),
            *(delta, out.data_ptr(), self.stream),
        )
        return out

    def angle(
        self, legs_i: tuple[Tensor, Tensor], legs_j: tuple[Tensor, Tensor], block: Block, weights: Weights, grad: bool
    ) -> tuple[Tensor | None, Tensor]:
        at = self._block(block, weights.n)
        v = self._empty(block.ni, block.nj) if grad else None
        losses = self._empty(self.module.rkd_angle_programs(at))
        legs = (x.data_ptr() for x in (*legs_i, *legs_j))
        scale = weights.angle / weights.n**3
        self.module.rkd_angle(*legs, at, weights.delta, scale, address(v), losses.data_ptr(), self.stream)
        return v, losses

    def gradient(self, part: GradientOfBlock) -> None:
        operands = (address(x) if isinstance(x, Tensor | None) else x for x in (*part.matrices(), *part.partial()))
        self.module.rkd_gradient(
            *(points(part.points), self._block(part.block, part.weights.n), *operands, *part.factors()),
            *(part.out.data_ptr(), part.accumulate, address(part.loss), self.stream),
        )
