"""Soft targets: the teacher's softened class probabilities."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import LOGITS, Captured
from kdx.knowledge.base import Knowledge
from kdx.ops import softmax_kl

__all__ = ["SoftTargets"]


class SoftTargets(Knowledge):
    """Temperature-softened KL divergence between teacher and student.

    Loss: ``T^2 KL(softmax(z_t / T) || softmax(z_s / T))``, summed over classes, averaged over the batch; ``T^2`` keeps
    the gradient's size independent of the temperature. The gradient goes to the student. The conventions for ``-inf``,
    NaN and empty batches are those of :func:`kdx.ops.softmax_kl`.

    Args:
        temperature: T > 0. Small students want a low one.
        student: tap of the student's logits ``[N, C]``.
        teacher: tap of the teacher's logits ``[N, C]``.
        backend: kernel backend, ``"auto"`` chooses; see :func:`kdx.ops.explain`.

    Paper: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531.

    Example:
        >>> import torch
        >>> kd = SoftTargets(temperature=4.0)
        >>> s, t = Captured({"logits": torch.tensor([[0.0, 0.0]])}), Captured({"logits": torch.tensor([[4.0, 0.0]])})
        >>> round(kd(s, t, None).item(), 4)
        1.7751
    """

    kind = "response"

    def __init__(
        self, temperature: float = 4.0, *, student: str = LOGITS, teacher: str = LOGITS, backend: str = "auto"
    ) -> None:
        super().__init__(student=student, teacher=teacher)
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self.temperature = float(temperature)
        self.backend = backend

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> Tensor:
        return softmax_kl(
            student[self.student_taps[0]],
            teacher[self.teacher_taps[0]],
            temperature=self.temperature,
            backend=self.backend,
        )

    @override
    def accepts_estimate(self, temperature: float) -> bool:
        # the gradient T (softmax(z_s / T) - p) is linear in p; the loss itself is off by the estimate's entropy
        return temperature == self.temperature

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
