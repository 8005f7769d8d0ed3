"""SimKD: reach the teacher's last feature, so that its classifier can be reused."""

from __future__ import annotations

from typing import Unpack

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Captured
from kdx.features.adapters import match
from kdx.features.operands import check_same_shape, in_full_precision
from kdx.knowledge.base import Knowledge
from kdx.tap import TapName, TapOptions

__all__ = ["SimKD", "simkd"]


@in_full_precision
def simkd(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between a projected student feature and the teacher's last feature.

    Args:
        student: ``[N, ...]``, any float dtype; computed in float32 (float64 stays).
        teacher: of the same shape.

    Returns:
        A scalar, the mean over all elements, with gradients to both.

    Example:
        >>> import torch
        >>> simkd(torch.zeros(2, 3), torch.full((2, 3), 2.0)).item()
        4.0
    """
    check_same_shape(student, teacher)
    return F.mse_loss(student, teacher)


class SimKD(Knowledge):
    """Mean squared error between the student's projected last feature and the teacher's.

    Loss: ``mean((proj(F_s) - F_t)^2)`` over all elements, no ``T^2``, weight 1 with no other term. Gradients reach the
    student and, through it, its projector. Maps of different size are average-pooled to the smaller.

    The method is more than this loss: the student's own classifier is replaced by a projector and the teacher's
    classifier, which it keeps when it is exported. So both are parts of the student, not of the knowledge, and the
    scheme ``simkd`` puts such a student together; this component is the term it trains on. It reads the tap
    ``projector`` of that student by default.

    Args:
        teacher: tap of the teacher's last feature ``[N, C, H, W]`` or ``[N, D]``, before pooling and classifier.
        student: tap of the projected feature, with as many channels.
        **features: see :class:`kdx.tap.TapOptions`.

    Paper: Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022,
    https://arxiv.org/abs/2203.14001.

    Example:
        >>> import torch
        >>> s, t = Captured({"projector": torch.zeros(2, 3, 4, 4)}), Captured({"layer4": torch.ones(2, 3, 8, 8)})
        >>> SimKD(teacher="layer4")(s, t, None).item()
        1.0
    """

    kind = "feature"

    def __init__(self, *, teacher: TapName, student: TapName = "projector", **features: Unpack[TapOptions]) -> None:
        super().__init__(student=student, teacher=teacher, **features)

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> Tensor:
        source, target = match(self.student_features(student)[0].full(), self.teacher_features(teacher)[0].full())
        if source.shape[1] != target.shape[1]:
            raise ValueError(
                f"SimKD compares features of as many channels, got {source.shape[1]} of the student and "
                f"{target.shape[1]} of the teacher; use the scheme 'simkd', which gives the student a projector"
            )
        return simkd(source, target)
