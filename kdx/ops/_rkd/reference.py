"""Relational knowledge distillation in plain PyTorch: the definition the other backends are held to.

Differentiable any number of times in both inputs. README.md of this folder has the formulas and the conventions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdx.ops._dtypes import accumulator
from kdx.ops._pairwise_sq_dist.reference import sq_dist

_CHUNK = 1 << 24  # angles held at once


def unsupported(student: Tensor, teacher: Tensor) -> str | None:
    """Why this backend cannot run these tensors: it runs all."""
    return None


def _roots(square: Tensor) -> tuple[Tensor, Tensor]:
    """Distances and inverse distances, both 0 for exact duplicates, with a gradient of 0 there."""
    duplicate = square < torch.finfo(square.dtype).tiny
    distance = square.masked_fill(duplicate, 1).sqrt()
    return distance.masked_fill(duplicate, 0), distance.reciprocal().masked_fill(duplicate, 0)


def _over_mean(square: Tensor) -> Tensor:
    """Distances over the mean of the positive ones; 0 when there are none."""
    distance, _ = _roots(square)
    positive = (distance != 0).sum()
    total = distance.sum()
    return distance * torch.where(positive == 0, 0, positive / torch.where(positive == 0, 1, total))


def distance_loss(student_square: Tensor, teacher_square: Tensor, delta: float) -> Tensor:
    """RKD-D from squared distances ``[N, N]``: the mean over all pairs of Huber's loss of normalised distances."""
    pairs = max(1, student_square.numel())
    total = F.huber_loss(_over_mean(student_square), _over_mean(teacher_square), reduction="sum", delta=delta)
    return total / pairs


def cosines(square: Tensor, inverse: Tensor, rows: slice) -> Tensor:
    """``A_i[j, k]``, the cosine at point i between j and k, for the points i in ``rows``: ``[n, N, N]``."""
    s, r = square[rows], inverse[rows]  # [n, N]
    return 0.5 * (s[:, :, None] + s[:, None, :] - square) * r[:, :, None] * r[:, None, :]


def _angle_chunk(
    student: Tensor, student_inverse: Tensor, teacher: Tensor, teacher_inverse: Tensor, rows: slice, delta: float
) -> Tensor:
    s, t = cosines(student, student_inverse, rows), cosines(teacher, teacher_inverse, rows)
    return F.huber_loss(s, t, reduction="sum", delta=delta)


def angle_loss(student_square: Tensor, teacher_square: Tensor, delta: float) -> Tensor:
    """RKD-A from squared distances ``[N, N]``: the mean over all triples of Huber's loss of cosines.

    By the law of cosines, for some points i at a time; each chunk is recomputed in the backward pass instead of kept.
    """
    n = student_square.shape[0]
    operands = (student_square, _roots(student_square)[1], teacher_square, _roots(teacher_square)[1])
    step = max(1, _CHUNK // max(1, n * n))
    if n <= step:
        return _angle_chunk(*operands, slice(None), delta) / max(1, n**3)
    total = student_square.new_zeros(())
    for start in range(0, n, step):
        rows = slice(start, start + step)
        total = total + checkpoint(_angle_chunk, *operands, rows, delta, use_reentrant=False)
    return total / n**3


def loss(
    student: Tensor,  # [N, D_s]
    teacher: Tensor,  # [N, D_t]
    distance_weight: float,
    angle_weight: float,
    delta: float,
) -> Tensor:
    """``distance_weight * RKD-D + angle_weight * RKD-A``; a loss of weight 0 is not computed, nor is one of no pair."""
    dtype = accumulator(student, teacher)
    if len(student) < 2:  # whatever a single point holds
        return student[:0].to(dtype).sum() + teacher[:0].to(dtype).sum()
    s, t = sq_dist(student.to(dtype), student.to(dtype)), sq_dist(teacher.to(dtype), teacher.to(dtype))
    total = s.new_zeros(())
    if distance_weight != 0:
        total = total + distance_weight * distance_loss(s, t, delta)
    if angle_weight != 0:
        total = total + angle_weight * angle_loss(s, t, delta)
    return total


def _slope(student: Tensor, teacher: Tensor, delta: float) -> Tensor:
    """Huber's influence function of the difference."""
    return (student - teacher).clamp(-delta, delta)


def _distance_weights(student_square: Tensor, teacher_square: Tensor, delta: float) -> Tensor:
    """``dL/dS`` of RKD-D for the unordered pairs ``[N, N]``; README.md derives it."""
    distance, inverse = _roots(student_square)
    psi = _slope(_over_mean(student_square), _over_mean(teacher_square), delta)
    count = (distance != 0).sum().clamp(min=1)
    mean = distance.sum() / count
    inverse_mean = torch.where(mean == 0, 0, 1 / torch.where(mean == 0, 1, mean))
    common = (psi * distance).sum() * inverse_mean / count
    return (psi - common) * inverse * inverse_mean / psi.numel()


def _angle_weights(student_square: Tensor, teacher_square: Tensor, delta: float) -> Tensor:
    """``dL/dS`` of RKD-A for the unordered pairs ``[N, N]``; README.md derives it."""
    n = student_square.shape[0]
    r, teacher_r = _roots(student_square)[1], _roots(teacher_square)[1]
    at_ends, opposite = torch.empty_like(r), torch.zeros_like(r)
    step = max(1, _CHUNK // (n * n))
    for start in range(0, n, step):
        rows = slice(start, start + step)
        cosine = cosines(student_square, r, rows)  # [n, N, N]
        psi = _slope(cosine, cosines(teacher_square, teacher_r, rows), delta)
        leg = r[rows]  # [n, N]
        at_ends[rows] = leg * (psi * leg[:, None, :]).sum(-1) - leg**2 * (psi * cosine).sum(-1)
        opposite += (psi * leg[:, :, None] * leg[:, None, :]).sum(0)
    return (at_ends + at_ends.T - opposite) * (r != 0) / n**3


def gradient(
    student: Tensor,  # [N, D_s]
    teacher: Tensor,  # [N, D_t]
    distance_weight: float,
    angle_weight: float,
    delta: float,
) -> Tensor:
    """The gradient of `loss` with respect to the student by formulas, ``2 (diag(V 1) - V) X`` with ``V = dL/dS``."""
    dtype = accumulator(student, teacher)
    x = student.to(dtype)
    if len(x) < 2:
        return torch.zeros_like(x)
    s, t = sq_dist(x, x), sq_dist(teacher.to(dtype), teacher.to(dtype))
    v = torch.zeros_like(s)
    if distance_weight != 0:
        v = v + distance_weight * _distance_weights(s, t, delta)
    if angle_weight != 0:
        v = v + angle_weight * _angle_weights(s, t, delta)
    x = x - x.mean(0)  # the gradient stays, and a common offset costs no digits
    return 2 * (v.sum(1, keepdim=True) * x - v @ x)


def forward(
    student: Tensor,  # [N, D_s]
    teacher: Tensor,  # [N, D_t]
    distance_weight: float,
    angle_weight: float,
    delta: float,
    student_grad: bool,
    teacher_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The raw contract of every backend: the loss and the wanted gradients, in float32 (float64 if an input is)."""
    weights = (distance_weight, angle_weight, delta)
    with torch.no_grad(), torch.autocast(student.device.type, enabled=False):
        return (
            loss(student, teacher, *weights),
            gradient(student, teacher, *weights) if student_grad else None,
            gradient(teacher, student, *weights) if teacher_grad else None,
        )
