"""The relational losses as their authors' formulas read in eager PyTorch: the peer of the RKD benchmarks.

Distances from ``|x|^2 + |y|^2 - 2 x y`` clamped at 1e-12, angles from normalised differences ``[N, N, D]`` and their
products ``[N, N, N]`` (Park et al. 2019, https://arxiv.org/abs/1904.05068). The teacher's part runs without a graph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _distances(x: Tensor) -> Tensor:
    square = x.pow(2).sum(1)
    distance = (square[:, None] + square[None, :] - 2 * (x @ x.T)).clamp(min=1e-12).sqrt()
    distance = distance.clone()
    distance[range(len(x)), range(len(x))] = 0
    return distance / distance[distance > 0].mean()


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-D."""
    with torch.no_grad():
        target = _distances(teacher)
    return F.smooth_l1_loss(_distances(student), target)


def _cosines(x: Tensor) -> Tensor:
    legs = F.normalize(x[None] - x[:, None], p=2, dim=2)  # [N, N, D]
    return torch.bmm(legs, legs.transpose(1, 2)).view(-1)  # [N^3]


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-A."""
    with torch.no_grad():
        target = _cosines(teacher)
    return F.smooth_l1_loss(_cosines(student), target)


def angle_bytes(n: int, d: int) -> int:
    """Peak memory of rkd_angle with its gradient: legs and cosines of both sides, and their gradients."""
    return 4 * (4 * n * n * d + 5 * n**3)
