"""The order of the work on a GPU: the same four kernels, on the whole pair grid or on its blocks.

Up to `CAP` points the squared distances of all pairs are kept: three launches for one of the losses with its
gradient, four for both. Above it the pair grid is processed in blocks of `BLOCK` x `BLOCK`, which recompute their
distances: the scratch is then a few blocks, and with the angle loss strips of ``N x BLOCK``, whatever N is. Nothing
here waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from kdx.ops._launch import on

CAP = 8192  # 3 N^2 float32: 0.8 GB
BLOCK = 2048


@dataclass(frozen=True)
class Weights:
    """The value of one call: ``distance * RKD-D + angle * RKD-A`` over n points."""

    n: int
    distance: float
    angle: float
    delta: float


@dataclass(frozen=True)
class Block:
    """Rows ``i0 .. i0 + ni`` and columns ``j0 .. j0 + nj`` of the pair grid."""

    i0: int
    ni: int
    j0: int
    nj: int

    @property
    def symmetric(self) -> bool:
        """Rows and columns are the same points: the kernels do the upper triangle and count it twice."""
        return self.i0 == self.j0 and self.ni == self.nj

    @property
    def times(self) -> int:
        """How often a block on or above the diagonal counts."""
        return 1 if self.symmetric else 2

    def transposed(self) -> Block:
        """The same pairs with rows and columns swapped."""
        return Block(self.j0, self.nj, self.i0, self.ni)


@dataclass(frozen=True)
class Side:
    """One input as the student of a pass; the teacher's gradient is a pass with the two swapped."""

    points: Tensor  # [N, D]
    swapped: bool

    def of(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The two in the order of this pass."""
        return (teacher, student) if self.swapped else (student, teacher)


class Distances(NamedTuple):
    """The parts of the gradient of RKD-D: squared distances of a block, partial means, sums of Huber's loss."""

    s: Tensor  # [ni, nj]
    t: Tensor  # [ni, nj]
    s_means: Tensor  # [2, P]
    t_means: Tensor  # [2, P]
    sums: Tensor  # [2, P]


@dataclass(frozen=True)
class GradientOfBlock:
    """One launch: rows i of ``2 (diag(V 1) - V) X`` over the columns j, written or added to ``out``; and the loss."""

    out: Tensor  # [N, D]
    points: Tensor  # [N, D]
    distances: Distances | None  # None: no distance loss
    v: Tensor | None  # V of the angle loss [ni, nj]; None: no angle loss
    losses: Tensor | None  # its partial sums [P]
    block: Block
    weights: Weights
    loss: Tensor | None = None
    accumulate: bool = False
    transposed: bool = False  # the matrices are those of ``block.transposed()``

    def matrices(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, int, int]:
        """Squared distances of student and teacher, V, and the strides of the three."""
        s, t = (None, None) if self.distances is None else self.distances[:2]
        return s, t, self.v, *((1, self.block.ni) if self.transposed else (self.block.nj, 1))

    def partial(self) -> tuple[Tensor | None, Tensor | None, int, Tensor | None, int, Tensor | None, int]:
        """Partial means of student and teacher, sums of the distances and losses of the angles, with their numbers."""
        losses = self.losses, 0 if self.losses is None else self.losses.numel()
        if self.distances is None:
            return None, None, 0, None, 0, *losses
        _, _, s_means, t_means, sums = self.distances
        return s_means, t_means, s_means.shape[1], sums, sums.shape[1], *losses

    def factors(self) -> tuple[float, float, float, float]:
        """Delta, the number of pairs, and the weights of the two losses."""
        n = float(self.weights.n)
        return self.weights.delta, n**2, self.weights.distance, self.weights.angle / n**3


class Stages(Protocol):
    """The functions that a GPU backend defines; every result is float32 and every sum is in a fixed order."""

    def measure(
        self, student: Tensor, teacher: Tensor, block: Block, sums: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Squared distances ``[ni, nj]`` of both; ``[4, P]`` partial sums and counts of the positive distances."""

    def distance_sums(self, s: Tensor, t: Tensor, s_means: Tensor, t_means: Tensor, delta: float) -> Tensor:
        """``[2, P]`` partial sums of Huber's loss and of ``B = sum psi d`` over a block, given the means ``[2, P]``."""

    def angle(
        self, legs_i: tuple[Tensor, Tensor], legs_j: tuple[Tensor, Tensor], block: Block, weights: Weights, grad: bool
    ) -> tuple[Tensor | None, Tensor]:
        """V of a block ``[ni, nj]``, and ``[P]`` partial sums of Huber's loss; legs are ``[N, ni]`` and ``[N, nj]``."""

    def gradient(self, part: GradientOfBlock) -> None:
        """The gradient of a block, and the loss where the part has a place for it."""


def forward(
    stages: Stages,
    student: Tensor,  # [N, D_s]
    teacher: Tensor,  # [N, D_t]
    distance_weight: float,
    angle_weight: float,
    delta: float,
    student_grad: bool,
    teacher_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss and the wanted gradients, in float32."""
    weights = Weights(student.shape[0], distance_weight, angle_weight, delta)
    with on(student.device):
        return _run(stages, student, teacher, weights, student_grad, teacher_grad)


def _run(
    stages: Stages, student: Tensor, teacher: Tensor, weights: Weights, student_grad: bool, teacher_grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    sides = [
        Side(x, swapped) for x, want, swapped in ((student, student_grad, False), (teacher, teacher_grad, True)) if want
    ]
    n = weights.n
    if n < 2 or (weights.distance == 0 and weights.angle == 0):
        zeros = [torch.zeros_like(x, dtype=torch.float32) for x in (student, teacher)]
        loss = student.new_zeros((), dtype=torch.float32)
        return loss, zeros[0] if student_grad else None, zeros[1] if teacher_grad else None
    loss, grads = (_whole if n <= CAP else _blocked)(stages, student, teacher, weights, sides)
    found = {side.swapped: grad for side, grad in zip(sides, grads, strict=True)}
    return loss, found.get(False), found.get(True)


def _value(weights: Weights, distance: Tensor | None, angle: Tensor | None) -> Tensor:
    """The loss from the sums of Huber's terms."""
    n = weights.n
    parts = []
    if distance is not None:
        parts.append(distance * (weights.distance / n**2))
    if angle is not None:
        parts.append(angle * (weights.angle / n**3))
    return sum(parts[1:], parts[0]).float()


def _whole(
    stages: Stages, student: Tensor, teacher: Tensor, weights: Weights, sides: list[Side]
) -> tuple[Tensor, list[Tensor]]:
    block = Block(0, weights.n, 0, weights.n)
    s, t, means = stages.measure(student, teacher, block, weights.distance != 0)
    loss = torch.empty((), dtype=torch.float32, device=student.device)
    grads: list[Tensor] = []
    for side in sides or [Side(student, swapped=False)]:
        own, other = side.of(s, t)
        sums = losses = v = distances = None
        if means is not None:
            own_means, other_means = side.of(means[:2], means[2:])
            sums = stages.distance_sums(own, other, own_means, other_means, weights.delta)
            distances = Distances(own, other, own_means, other_means, sums)
        if weights.angle != 0:
            v, losses = stages.angle((own, other), (own, other), block, weights, bool(sides))
        if not sides:
            return _value(
                weights, None if sums is None else sums[0].sum(), None if losses is None else losses.sum()
            ), []
        out = torch.empty(side.points.shape, dtype=torch.float32, device=student.device)
        into = None if grads else loss
        stages.gradient(GradientOfBlock(out, side.points, distances, v, losses, block, weights, into))
        grads.append(out)
    return loss, grads


def _blocks(n: int, size: int) -> Iterator[Block]:
    for j0 in range(0, n, size):
        for i0 in range(0, j0 + 1, size):
            yield Block(i0, min(size, n - i0), j0, min(size, n - j0))


def _blocked(
    stages: Stages, student: Tensor, teacher: Tensor, weights: Weights, sides: list[Side]
) -> tuple[Tensor, list[Tensor]]:
    n, size = weights.n, BLOCK
    means = student.new_zeros((4, 1), dtype=torch.float64)
    angle_loss = student.new_zeros((), dtype=torch.float64)
    out = [torch.zeros(side.points.shape, dtype=torch.float32, device=student.device) for side in sides]
    passes = sides or [Side(student, swapped=False)]
    sums = [student.new_zeros((2, 1), dtype=torch.float64) for _ in passes]
    if weights.distance != 0:
        for block in _blocks(n, size):
            part = stages.measure(student, teacher, block, True)[2]
            assert part is not None
            means += block.times * part.double().sum(1, keepdim=True)
        mean = means.float()
        for block in _blocks(n, size):
            s, t, _ = stages.measure(student, teacher, block, False)
            for side, total in zip(passes, sums, strict=True):
                own_means, other_means = side.of(mean[:2], mean[2:])
                part = stages.distance_sums(*side.of(s, t), own_means, other_means, weights.delta)
                total.add_(part.double().sum(1, keepdim=True), alpha=block.times)
    if sides or weights.angle != 0:
        legs_j: tuple[Tensor, Tensor] = (means, means)  # of the column of blocks at hand; the first block makes them
        for block in _blocks(n, size):
            if weights.angle != 0:
                if block.i0 == 0:
                    legs_j = stages.measure(student, teacher, Block(0, n, block.j0, block.nj), False)[:2]
                columns = Block(0, n, block.i0, block.ni)
                legs_i = legs_j if block.symmetric else stages.measure(student, teacher, columns, False)[:2]
                rows = slice(block.i0, block.i0 + block.ni)
                s, t = legs_j[0][rows], legs_j[1][rows]
            else:
                s, t, _ = stages.measure(student, teacher, block, False)
            for index, side in enumerate(passes):
                own, other = side.of(s, t)
                distances = v = losses = None
                if weights.distance != 0:
                    own_means, other_means = side.of(mean[:2], mean[2:])
                    distances = Distances(own, other, own_means, other_means, sums[index].float())
                if weights.angle != 0:
                    v, losses = stages.angle(side.of(*legs_i), side.of(*legs_j), block, weights, bool(sides))
                    if index == 0:
                        angle_loss += block.times * losses.double().sum()
                if not sides:
                    continue
                whole = GradientOfBlock(out[index], side.points, distances, v, losses, block, weights, accumulate=True)
                stages.gradient(whole)
                if not block.symmetric:
                    stages.gradient(replace(whole, block=block.transposed(), transposed=True))
    return _value(weights, sums[0][0].sum() if weights.distance else None, angle_loss if weights.angle else None), out
