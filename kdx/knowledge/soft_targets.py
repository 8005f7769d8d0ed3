"""Soft targets: the teacher's softened class probabilities."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from kdx.capture import LOGITS
from kdx.knowledge.divergence import Divergence, Tail

__all__ = ["SoftTargets"]


class SoftTargets(Divergence):
    """Temperature-softened KL divergence between teacher and student.

    Loss: ``T^2 KL(softmax(z_t / T) || softmax(z_s / T))``, summed over classes, averaged over the
    samples, tokens or pixels; ``T^2`` keeps
    the gradient's size independent of the temperature. The gradient goes to the student. The conventions for ``-inf``,
    NaN and empty batches are those of :func:`kdx.ops.softmax_kl`.

    Args:
        temperature: T > 0. Small students want a low one.
        class_dim: axis of the classes, see :class:`kdx.knowledge.Response`; None: what the task says.
        void: whether elements with target -100 teach nothing; None: what the task says.
        vocabulary: n, to compare the first n classes of both sides, see :class:`kdx.knowledge.Response`; None: all.
        tail: of a teacher whose store keeps a few classes of each row, what becomes of the others, see
            :func:`kdx.ops.topk_kl`.
        student: tap of the student's logits, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``, or of
            :class:`kdx.LinearLogits`.
        teacher: tap of the teacher's logits, the same shape.
        backend: kernel backend, ``"auto"`` chooses; see :func:`kdx.ops.explain`.

    Paper: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> kd = SoftTargets(temperature=4.0)
        >>> s, t = Captured({"logits": torch.tensor([[0.0, 0.0]])}), Captured({"logits": torch.tensor([[4.0, 0.0]])})
        >>> round(kd(s, t, None).item(), 4)
        1.7751
    """

    def __init__(
        self,
        temperature: float = 4.0,
        *,
        class_dim: int | None = None,
        void: bool | None = None,
        vocabulary: int | None = None,
        tail: Tail = "bucket",
        student: str = LOGITS,
        teacher: str = LOGITS,
        backend: str = "auto",
    ) -> None:
        options = {"class_dim": class_dim, "void": void, "vocabulary": vocabulary}
        taps = {"student": student, "teacher": teacher}
        super().__init__(temperature=temperature, tail=tail, backend=backend, **options, **taps)

    @property
    @override
    def numbers(self) -> dict[str, Any]:
        return {"divergence": "forward"}

    @override
    def accepts_estimate(self, temperature: float) -> bool:
        # the gradient T (softmax(z_s / T) - p) is linear in p; the loss itself is off by the estimate's entropy
        return temperature == self.temperature
