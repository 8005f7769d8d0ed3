"""Margin-MSE: how much better the right passage is than the wrong ones, in the teacher's scores."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS
from kdx.features.operands import check_same_outputs, in_full_precision
from kdx.knowledge.response import Outputs, Response

__all__ = ["MarginMSE", "margin_mse"]


@in_full_precision
def margin_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error between margins, averaged over samples and negatives, a scalar; see :class:`MarginMSE`."""
    check_same_outputs(student, teacher)
    if student.dim() != 2 or student.shape[1] < 2:
        raise ValueError(
            "expected scores [N, 1 + K], of the positive and then of K negatives of each query, got "
            f"{list(student.shape)}"
        )
    error = (student[:, :1] - student[:, 1:]) - (teacher[:, :1] - teacher[:, 1:])  # [N, K]
    return error.square().sum() / max(1, error.numel())


class MarginMSE(Response):
    """Squared error between the margins of the scores that teacher and student give a positive over negatives.

    Loss: ``mean(((s(q, p) - s(q, n)) - (t(q, p) - t(q, n)))^2)`` over queries q and their negatives n; for rankers
    whose scores have no common scale (a student that scores by dot product, a teacher with a cross-encoder). No
    temperature, no ``T^2``. Gradients reach both sides. An empty batch gives 0.

    Args:
        student: tap of the student's scores, ``[N, 1 + K]``: of the positive passage and then of K negatives.
        teacher: tap of the teacher's scores, the same shape.

    Raises:
        ValueError: in a call, scores of another shape.

    Paper: Hofstätter et al., Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation,
    2020, https://arxiv.org/abs/2010.02666 (K = 1); code: https://github.com/sebastian-hofstaetter/neural-ranking-kd.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"logits": torch.tensor([[2.0, 1.0]])}), Captured({"logits": torch.tensor([[9.0, 6.0]])})
        >>> MarginMSE()(s, t, None).item()
        4.0
    """

    form = None

    def __init__(self, *, student: str = LOGITS, teacher: str = LOGITS) -> None:
        super().__init__(student=student, teacher=teacher)

    @override
    def compare(self, outputs: Outputs) -> Tensor:
        return margin_mse(outputs.student, outputs.teacher)
