"""Logits: the student regresses the teacher's logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import LOGITS, Captured
from kdx.features.operands import Variant, check_choice, check_same_shape, in_full_precision
from kdx.knowledge.base import Knowledge

__all__ = ["Logits", "match_logits"]


@in_full_precision
def match_logits(student: Tensor, teacher: Tensor, *, variant: Variant = "code") -> Tensor:
    """Squared error between logits, ``[..., C]`` both; a scalar, 0 for an empty batch. See :class:`Logits`."""
    check_same_shape(student, teacher)
    check_choice("variant", variant, ("paper", "code"))
    total = F.mse_loss(student, teacher, reduction="sum")
    if variant == "paper":
        return total / (2 * max(1, student.numel() // student.shape[-1]))
    return total / max(1, student.numel())


class Logits(Knowledge):
    """Squared error between the logits of student and teacher.

    Loss: ``mean((z_s - z_t)^2)`` over samples and classes (``"code"``, the common form), or
    ``1/2 sum_c (z_s - z_t)^2`` averaged over samples (``"paper"``; C/2 times as large). No temperature, no ``T^2``;
    for a high temperature and rows of equal mean, soft targets (``T^2 KL``) tend to half of the mean.
    Gradients reach both sides. A logit of -inf gives inf or NaN: leave masked classes out.

    Args:
        variant: ``"code"`` or ``"paper"``, the reductions above.
        student: tap of the student's logits ``[N, C]`` (or ``[N, L, C]``).
        teacher: tap of the teacher's logits, the same shape.

    Paper: Ba, Caruana, Do Deep Nets Really Need to be Deep?, NeurIPS 2014, https://arxiv.org/abs/1312.6184, equation 1.

    Example:
        >>> import torch
        >>> s, t = Captured({"logits": torch.tensor([[0.0, 0.0]])}), Captured({"logits": torch.tensor([[4.0, 0.0]])})
        >>> Logits()(s, t, None).item(), Logits(variant="paper")(s, t, None).item()
        (8.0, 8.0)
    """

    kind = "response"

    def __init__(self, *, variant: Variant = "code", student: str = LOGITS, teacher: str = LOGITS) -> None:
        super().__init__(student=student, teacher=teacher)
        check_choice("variant", variant, ("paper", "code"))
        self.variant = variant

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> Tensor:
        return match_logits(student[self.student_taps[0]], teacher[self.teacher_taps[0]], variant=self.variant)

    @override
    def extra_repr(self) -> str:
        return f"variant={self.variant!r}"
