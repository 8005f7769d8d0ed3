"""The relational losses in CUDA C++: the launchers of csrc/cuda/rkd_*.cu, and of their host emulation in the tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdx.ops._dispatch import native
from kdx.ops.rkd import pair_grid
from kdx.ops.rkd.pair_grid import Block, Weights

DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}  # csrc/include/kdx/dtype.h


def unsupported(student: Tensor, teacher: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    other = next((x.dtype for x in (student, teacher) if x.dtype not in DTYPES), None)
    if other == torch.float64:
        return "no float64 kernel; the backends cpu and reference compute in float64"
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
    """The loss and the wanted gradients, in float32."""
    return pair_grid.forward(
        _Stages(student.device), student, teacher, distance_weight, angle_weight, delta, student_grad, teacher_grad
    )


def _points(x: Tensor) -> tuple[int, ...]:
    return (x.data_ptr(), DTYPES[x.dtype], x.shape[1], *x.stride())


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


class _Stages:
    """`pair_grid.Stages` by CUDA kernels on the current stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.module: Any = native("cuda")
        self.stream: int = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0

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
            _points(student), _points(teacher), at, s.data_ptr(), t.data_ptr(), _address(part), self.stream
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
        self.module.rkd_angle(*legs, at, weights.delta, scale, _address(v), losses.data_ptr(), self.stream)
        return v, losses

    def gradient(
        self,
        out: Tensor,
        points: Tensor,
        distances: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None,
        angles: tuple[Tensor, Tensor] | None,
        block: Block,
        weights: Weights,
        loss: Tensor | None,
        accumulate: bool,
        transposed: bool,
    ) -> None:
        s, t, s_means, t_means, sums = distances or (None,) * 5
        v, losses = angles or (None, None)
        n = weights.n
        self.module.rkd_gradient(
            *(_points(points), self._block(block, n), _address(s), _address(t), _address(v)),
            *((1, block.ni) if transposed else (block.nj, 1)),
            *(_address(s_means), _address(t_means), 0 if s_means is None else s_means.shape[1]),
            *(_address(sums), 0 if sums is None else sums.shape[1]),
            *(_address(losses), 0 if losses is None else losses.numel()),
            *(weights.delta, float(n) ** 2, weights.distance, weights.angle / n**3),
            *(out.data_ptr(), accumulate, _address(loss), self.stream),
        )
