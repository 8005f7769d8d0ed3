"""The relational losses in Triton: tile shapes and launches of triton_kernels.py."""

from __future__ import annotations

import torch
from torch import Tensor

from kdx.ops._dtypes import SINGLE, no_kernel
from kdx.ops._rkd import pair_grid, triton_kernels
from kdx.ops._rkd.pair_grid import Block, GradientOfBlock, Weights

_REDUCE = 1024  # partial sums read at once
_MAX_PROGRAMS = 512  # of distance_sums; a constant, so that the order of the sums is the same on every device


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
        _Stages(), student, teacher, distance_weight, angle_weight, delta, student_grad, teacher_grad
    )


def distance_tile(points: int) -> int:
    """Side of a tile of distances: small for few points, so that the device has enough programs."""
    return 16 if points <= 512 else 32


def angle_tile(points: int) -> int:
    """Side of a tile of pairs."""
    return 16 if points <= 512 else 32


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


class _Stages:
    """`pair_grid.Stages` by Triton kernels."""

    def measure(
        self, student: Tensor, teacher: Tensor, block: Block, sums: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        shape, device = (block.ni, block.nj), student.device
        s, t = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(2))
        tile = distance_tile(max(shape))
        grid = (_cdiv(block.nj, tile), _cdiv(block.ni, tile))
        part = torch.empty((4, grid[0] * grid[1]), dtype=torch.float32, device=device) if sums else None
        triton_kernels.measure[grid](
            *(student, *student.stride(), student.shape[1]),
            *(teacher, *teacher.stride(), teacher.shape[1]),
            *(s, t, part, block.i0, block.ni, block.j0, block.nj),
            SYMMETRIC=block.symmetric,
            SUMS=sums,
            TILE=tile,
            BD=8,
            num_warps=2 if tile == 16 else 4,
        )
        return s, t, part

    def distance_sums(self, s: Tensor, t: Tensor, s_means: Tensor, t_means: Tensor, delta: float) -> Tensor:
        size, step = s.numel(), 1024
        programs = min(_MAX_PROGRAMS, max(1, _cdiv(size, step)))
        per_program = _cdiv(_cdiv(size, programs), step) * step
        out = torch.empty((2, programs), dtype=torch.float32, device=s.device)
        triton_kernels.distance_sums[(programs,)](
            s, t, size, s_means, t_means, s_means.shape[1], out, delta, per_program, BLOCK=step, num_warps=4
        )
        return out

    def angle(
        self, legs_i: tuple[Tensor, Tensor], legs_j: tuple[Tensor, Tensor], block: Block, weights: Weights, grad: bool
    ) -> tuple[Tensor | None, Tensor]:
        device = legs_i[0].device
        tile = angle_tile(max(block.ni, block.nj))
        grid = (_cdiv(block.nj, tile), _cdiv(block.ni, tile))
        v = torch.empty((block.ni, block.nj), dtype=torch.float32, device=device) if grad else None
        losses = torch.empty(grid[0] * grid[1], dtype=torch.float32, device=device)
        triton_kernels.angle[grid](
            *(*legs_i, *legs_j, v, losses, weights.n, block.i0, block.ni, block.j0, block.nj),
            *(weights.delta, weights.angle / weights.n**3),
            SYMMETRIC=block.symmetric,
            GRAD=grad,
            TILE=tile,
            num_warps=4,
        )
        return v, losses

    def gradient(self, part: GradientOfBlock) -> None:
        points, block = part.points, part.block
        depth = points.shape[1]
        ti, bd = (16, 32) if part.weights.n <= 512 else (32, 64)
        triton_kernels.gradient[(_cdiv(block.ni, ti), max(1, _cdiv(depth, bd)))](
            *(*part.matrices(), points, *points.stride(), depth, part.out),
            *(block.i0, block.ni, block.j0, block.nj, *part.partial(), part.loss, *part.factors()),
            DISTANCE=part.distances is not None,
            ANGLE=part.v is not None,
            ACCUMULATE=part.accumulate,
            LOSS=part.loss is not None,
            TI=ti,
            TJ=32,
            BD=bd,
            BLOCK=_REDUCE,
            num_warps=4,
        )
