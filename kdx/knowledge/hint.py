"""Hints: a student layer regresses a teacher layer through a learned adapter (FitNets)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from kdx.adapters import match, project
from kdx.batch import Batch
from kdx.capture import Captured
from kdx.knowledge.base import Knowledge

__all__ = ["Hint"]


class Hint(Knowledge):
    """Mean squared error between an adapted student feature and a teacher feature, the one-stage form of FitNets.

    Loss: ``mean((r(F_s) - F_t)^2)`` over all elements, where ``r`` is a 1x1 convolution (maps ``[N, C, H, W]``) or a
    linear layer (``[N, D]`` and tokens ``[N, L, D]``), learned with the student; no ``T^2``. Of two maps of different
    size the larger is average-pooled to the smaller. Gradients reach the student and the adapter.

    Args:
        student: tap of the guided layer.
        teacher: tap of the hint layer.

    Paper: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, https://arxiv.org/abs/1412.6550. The paper
    trains the guided layers first, on half the squared norm; the one-stage mean (weight 100) is the common variant.

    Example:
        >>> import torch
        >>> hint = Hint(student="conv", teacher="conv")
        >>> s, t = Captured({"conv": torch.zeros(2, 4, 8, 8)}), Captured({"conv": torch.ones(2, 6, 4, 4)})
        >>> hint.setup(s, t)
        >>> hint.adapter.weight.shape
        torch.Size([6, 4, 1, 1])
    """

    kind = "feature"

    def __init__(self, *, student: str, teacher: str) -> None:
        super().__init__(student=student, teacher=teacher)
        self.adapter: nn.Module | None = None

    @property
    @override
    def ready(self) -> bool:
        return self.adapter is not None

    @override
    def setup(self, student: Captured, teacher: Captured) -> None:
        if self.adapter is None:
            self.adapter = project(student[self.student_taps[0]], teacher[self.teacher_taps[0]])

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> Tensor:
        if self.adapter is None:
            raise RuntimeError("Hint has no adapter yet; call scheme.setup(batch) before the optimizer is built")
        adapted, target = match(self.adapter(student[self.student_taps[0]]), teacher[self.teacher_taps[0]])
        return F.mse_loss(adapted.float(), target.float())
