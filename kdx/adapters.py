"""Transformations that make a student's feature comparable with a teacher's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["match", "project"]


def project(student: Tensor, teacher: Tensor) -> nn.Module:
    """A learnable map from the student's channels to the teacher's, sized by one example of each.

    Args:
        student: ``[N, C, H, W]``, ``[N, L, D]`` or ``[N, D]``.
        teacher: the same number of dimensions.

    Returns:
        A bias-free 1x1 convolution for maps, a bias-free linear layer otherwise, on the student's device and dtype.

    Raises:
        ValueError: the features have different numbers of dimensions, or none of the forms above.
    """
    if student.dim() != teacher.dim() or student.dim() not in (2, 3, 4):
        raise ValueError(
            f"cannot adapt a student feature of shape {list(student.shape)} to a teacher feature of shape "
            f"{list(teacher.shape)}; both must be maps [N, C, H, W], tokens [N, L, D] or vectors [N, D]: tap layers "
            "of the same form"
        )
    layer: nn.Module
    if student.dim() == 4:
        layer = nn.Conv2d(student.shape[1], teacher.shape[1], 1, bias=False)
    else:
        layer = nn.Linear(student.shape[-1], teacher.shape[-1], bias=False)
    return layer.to(student.device, student.dtype)


def match(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pools the larger of two maps to the size of the smaller; other features must agree already.

    Args:
        student: ``[N, C, H, W]`` or any shape.
        teacher: ``[N, C', H', W']`` or the student's shape.

    Raises:
        ValueError: token or vector features whose lengths differ.
    """
    if student.dim() == teacher.dim() == 4:
        size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        return _pool(student, size), _pool(teacher, size)
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"features of shape {list(student.shape)} and {list(teacher.shape)} differ in length; tap layers with "
            "the same number of tokens"
        )
    return student, teacher


def _pool(feature: Tensor, size: tuple[int, int]) -> Tensor:
    return feature if feature.shape[2:] == size else F.adaptive_avg_pool2d(feature, size)
