"""rkd, rkd_distance, rkd_angle: what a user calls. Arguments are checked here, once; README.md has the mathematics."""

from __future__ import annotations

import math

from torch import Tensor

from kdx.ops._rkd.autograd import loss_of

__all__ = ["rkd", "rkd_angle", "rkd_distance"]


def rkd_distance(student: Tensor, teacher: Tensor, *, delta: float = 1.0, backend: str = "auto") -> Tensor:
    """Distance-wise relational loss (RKD-D): Huber's loss between the normalised pairwise distances of two
    embeddings.

    ``mean_ij h(|s_i - s_j| / mu - |t_i - t_j| / nu)`` with mu and nu the means of the positive distances, over all
    N^2 pairs as in Park et al. 2019 (https://arxiv.org/abs/1904.05068). Gradients reach both inputs where they ask
    for one; a teacher that does not require a gradient costs none.

    Args:
        student: embeddings ``[N, D_s]``, any strides, float32, float64, bfloat16 or float16.
        teacher: embeddings of the same N points ``[N, D_t]``; dimension and dtype may differ.
        delta: where Huber's loss turns from square to linear, > 0.
        backend: ``"auto"``, or the name of one that has to run it.

    Returns:
        A number in float32 (float64 if an input is): 0 for N < 2, and for N = 2 by construction. Exact duplicates
        count as distance 0, are left out of the mean and get no gradient through their pair; an input whose points are
        all equal has all normalised distances 0 and the gradient 0.

    Raises:
        ValueError: shapes, devices or values that do not fit; the message names the argument.
        TypeError: an input that is not floating point.
        BackendError: the named backend cannot run here.

    Example:
        >>> import torch, kdx
        >>> teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> kdx.ops.rkd_distance(2 * teacher, teacher).item()
        0.0
        >>> student = torch.tensor([[0.0], [1.0], [2.0]])
        >>> round(kdx.ops.rkd_distance(student, teacher).item(), 4)
        0.0556

    """
    _check(student, teacher, delta)
    return loss_of(student, teacher, 1.0, 0.0, float(delta), backend)


def rkd_angle(student: Tensor, teacher: Tensor, *, delta: float = 1.0, backend: str = "auto") -> Tensor:
    """Angle-wise relational loss (RKD-A): Huber's loss between the cosines of all angles of two embeddings.

    ``mean_ijk h(cos(s_j - s_i, s_k - s_i) - cos(t_j - t_i, t_k - t_i))`` over all N^3 triples as in Park et al. 2019
    (https://arxiv.org/abs/1904.05068), in memory that grows with N^2. Gradients reach both inputs where they ask
    for one.

    Args:
        student: embeddings ``[N, D_s]``, any strides, float32, float64, bfloat16 or float16.
        teacher: embeddings of the same N points ``[N, D_t]``; dimension and dtype may differ.
        delta: where Huber's loss turns from square to linear, > 0.
        backend: ``"auto"``, or the name of one that has to run it.

    Returns:
        A number in float32 (float64 if an input is): 0 for N < 2. Angles with a leg between exact duplicates have
        cosine 0, and no gradient passes through such a leg. A cosine errs by a few 2^-24 R (2^-53 R in float64), R the
        longest distance over the shortest: embeddings with R above 1e4 belong in float64, or should be normalised.

    Raises:
        ValueError: shapes, devices or values that do not fit; the message names the argument.
        TypeError: an input that is not floating point.
        BackendError: the named backend cannot run here.

    Example:
        >>> import torch, kdx
        >>> teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> turned = teacher @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> kdx.ops.rkd_angle(5 * turned + 7, teacher).item() < 1e-9
        True
        >>> student = torch.tensor([[0.0], [1.0], [2.0]])
        >>> round(kdx.ops.rkd_angle(student, teacher).item(), 4)
        0.12

    """
    _check(student, teacher, delta)
    return loss_of(student, teacher, 0.0, 1.0, float(delta), backend)


def rkd(
    student: Tensor,
    teacher: Tensor,
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
    delta: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """Both relational losses, ``distance_weight * RKD-D + angle_weight * RKD-A``, with their pairwise work shared.

    The default weights are those of Park et al. 2019 (https://arxiv.org/abs/1904.05068) beside a cross-entropy; for
    metric learning the paper takes 1 and 2. See `rkd_distance` and `rkd_angle`.

    Args:
        student: embeddings ``[N, D_s]``, any strides, float32, float64, bfloat16 or float16.
        teacher: embeddings of the same N points ``[N, D_t]``; dimension and dtype may differ.
        distance_weight: weight of RKD-D, >= 0; at 0 it is not computed.
        angle_weight: weight of RKD-A, >= 0; at 0 it is not computed.
        delta: where Huber's loss turns from square to linear, > 0.
        backend: ``"auto"``, or the name of one that has to run it.

    Returns:
        A number in float32 (float64 if an input is).

    Raises:
        ValueError: shapes, devices or values that do not fit; the message names the argument.
        TypeError: an input that is not floating point.
        BackendError: the named backend cannot run here.

    Example:
        >>> import torch, kdx
        >>> student, teacher = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> round(kdx.ops.rkd(student, teacher).item(), 4)
        7.3889

    """
    _check(student, teacher, delta)
    for name, weight in (("distance_weight", distance_weight), ("angle_weight", angle_weight)):
        if not 0 <= weight < math.inf:
            raise ValueError(f"{name}: expected a finite number >= 0, got {weight}")
    return loss_of(student, teacher, float(distance_weight), float(angle_weight), float(delta), backend)


def _check(student: Tensor, teacher: Tensor, delta: float) -> None:
    for name, x in (("student", student), ("teacher", teacher)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(
                f"{name}: expected floating point embeddings, got {x.dtype}; convert them, for example .float()"
            )
        if x.dim() != 2:
            raise ValueError(f"{name}: expected embeddings [N, D], got shape {list(x.shape)}; flatten(1) makes them so")
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"teacher: expected embeddings of the student's {student.shape[0]} points, got {teacher.shape[0]}"
        )
    if student.device != teacher.device:
        raise ValueError(f"teacher: expected it on {student.device} as the student is, got {teacher.device}")
    if not 0 < delta < math.inf:
        raise ValueError(f"delta: expected a finite number > 0, got {delta}")
