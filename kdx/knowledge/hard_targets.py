"""Hard targets: the class that the teacher predicts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import LOGITS, Captured
from kdx.features.operands import check_same_shape, in_full_precision
from kdx.knowledge.base import Knowledge

__all__ = ["HardTargets", "hard_targets"]


@in_full_precision
def hard_targets(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy with the teacher's predicted class, logits ``[..., C]`` of both; a scalar, 0 for an empty batch.

    See :class:`HardTargets`.
    """
    check_same_shape(student, teacher)
    classes = student.shape[-1]
    rows = student.reshape(-1, classes)
    decisions = teacher.reshape(-1, classes).argmax(dim=1)  # [N]
    return F.cross_entropy(rows, decisions, reduction="sum") / max(1, rows.shape[0])


class HardTargets(Knowledge):
    """Cross-entropy of the student with the class that the teacher predicts.

    Loss: ``CE(z_s, argmax_c z_t)``, averaged over the samples; of equal logits the first class is taken. No
    temperature, no ``T^2``. The gradient goes to the student; the teacher's prediction has none. A student logit of
    -inf at the predicted class gives inf.

    Args:
        student: tap of the student's logits ``[N, C]`` (or ``[N, L, C]``).
        teacher: tap of the teacher's logits, the same shape.

    Paper: Lee, Pseudo-Label, ICML workshop 2013; as hard-label distillation with weights 1/2 and 1/2 beside the labels:
    Touvron et al., Training data-efficient image transformers & distillation through attention, ICML 2021,
    https://arxiv.org/abs/2012.12877, equation 3.

    Example:
        >>> import torch
        >>> s, t = Captured({"logits": torch.tensor([[0.0, 0.0]])}), Captured({"logits": torch.tensor([[4.0, 0.0]])})
        >>> round(HardTargets()(s, t, None).item(), 4)
        0.6931
    """

    kind = "response"

    def __init__(self, *, student: str = LOGITS, teacher: str = LOGITS) -> None:
        super().__init__(student=student, teacher=teacher)

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> Tensor:
        return hard_targets(student[self.student_taps[0]], teacher[self.teacher_taps[0]])
