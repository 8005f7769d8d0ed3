"""Jensen-Shannon divergence: between forward and reverse KL, and bounded."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import LOGITS, Captured
from kdx.knowledge.base import Knowledge
from kdx.ops import softmax_kl

__all__ = ["JSD", "jsd"]


def jsd(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, beta: float = 0.5, backend: str = "auto"
) -> Tensor:
    """``T^2 JSD_beta`` of logits ``[..., C]``, a scalar; see :class:`JSD`."""
    return softmax_kl(student, teacher, temperature=temperature, divergence="jsd", beta=beta, backend=backend)


class JSD(Knowledge):
    """Generalised Jensen-Shannon divergence between softened class probabilities.

    Loss: ``T^2 (beta KL(p || m) + (1 - beta) KL(q || m))`` with teacher ``p``, student ``q`` and
    ``m = beta p + (1 - beta) q``, summed over classes, averaged over the batch. At most ``T^2 log 2`` for beta 0.5, so
    one confident mistake cannot dominate a batch. Divided by ``beta`` it tends to the forward KL of soft targets for
    beta to 0, divided by ``1 - beta`` to the reverse KL for beta to 1. Gradients reach both sides; the conventions for
    ``-inf``, NaN and empty batches are those of :func:`kdx.ops.softmax_kl`.

    Args:
        temperature: T > 0; 1, as for language models.
        beta: weight of the teacher in the mixture, 0 < beta < 1.
        student: tap of the student's logits ``[N, C]`` (or ``[N, L, C]``).
        teacher: tap of the teacher's logits, the same shape.
        backend: kernel backend, ``"auto"`` chooses.

    Paper: Agarwal et al., On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes, ICLR 2024,
    https://arxiv.org/abs/2306.13649.

    Example:
        >>> import torch
        >>> s, t = Captured({"logits": torch.tensor([[0.0, 0.0]])}), Captured({"logits": torch.tensor([[4.0, 0.0]])})
        >>> round(JSD()(s, t, None).item(), 4)
        0.1804
    """

    kind = "response"

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        beta: float = 0.5,
        student: str = LOGITS,
        teacher: str = LOGITS,
        backend: str = "auto",
    ) -> None:
        super().__init__(student=student, teacher=teacher)
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        if not 0 < beta < 1:
            raise ValueError(f"beta must lie between 0 and 1, got {beta}; the ends are soft-targets and reverse-kl")
        self.temperature, self.beta = float(temperature), float(beta)
        self.backend = backend

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> Tensor:
        s, t = student[self.student_taps[0]], teacher[self.teacher_taps[0]]
        return jsd(s, t, temperature=self.temperature, beta=self.beta, backend=self.backend)

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, beta={self.beta}"
