"""Gaussian KL: a regression teacher that says how sure it is of each value."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import LOGITS, Captured
from kdx.features.operands import in_full_precision
from kdx.knowledge.base import Knowledge
from kdx.responses import Form, Responses

__all__ = ["GaussianKL", "gaussian_kl"]


@in_full_precision
def gaussian_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL of normal distributions, averaged over samples and values, a scalar; see :class:`GaussianKL`."""
    if student.dim() < 2 or teacher.dim() < 2 or teacher.shape[1] % 2 or student.shape[:1] != teacher.shape[:1]:
        raise ValueError(
            "expected a teacher [N, 2 K], its means and then its log-variances, and a student [N, 2 K] or [N, K], got "
            f"{list(teacher.shape)} and {list(student.shape)}"
        )
    mean, log_variance = teacher.chunk(2, 1)
    if student.shape == mean.shape:
        kl = (student - mean).square() * (-log_variance).exp() / 2
    elif student.shape == teacher.shape:
        own_mean, own = student.chunk(2, 1)
        kl = (own - log_variance + (log_variance - own).exp() + (own_mean - mean).square() * (-own).exp() - 1) / 2
    else:
        raise ValueError(
            f"expected a student of the teacher's shape {list(teacher.shape)} or of its means', {list(mean.shape)}, "
            f"got {list(student.shape)}; give both models the same quantities, or pick in the teacher those of the "
            "student with teacher_output="
        )
    return kl.sum() / max(1, kl.numel())


class GaussianKL(Knowledge):
    """KL divergence between the normal distributions that a regression teacher and its student predict.

    The teacher gives means and log-variances, ``[N, 2 K]`` with the means first, as the task ``regression`` with
    ``loss: gaussian`` trains it. Loss: averaged over samples and values (no temperature, no ``T^2``),

    - of a student ``[N, 2 K]``: ``KL(N(m_t, v_t) || N(m_s, v_s)) =
      (log v_s - log v_t + (v_t + (m_s - m_t)^2) / v_s - 1) / 2``;
    - of a student ``[N, K]``, which says nothing of its variance: the same with the teacher's,
      ``(m_s - m_t)^2 / (2 v_t)``: the squared error counts less where the teacher is unsure.

    Gradients reach both sides. An empty batch gives 0. For a teacher without variances take ``logits``.

    Args:
        student: tap of the student's values.
        teacher: tap of the teacher's means and log-variances.

    Raises:
        ValueError: in a call, outputs of other shapes; outputs of a task that are no values.

    Paper: Kendall, Gal, What Uncertainties Do We Need in Bayesian Deep Learning for Computer Vision?, NeurIPS 2017,
    https://arxiv.org/abs/1703.04977, for the outputs and the weight that a variance gives an error; the divergence is
    the textbook's, and kdx's choice for distilling them.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"logits": torch.tensor([[1.0]])}), Captured({"logits": torch.tensor([[3.0, 0.0]])})
        >>> GaussianKL()(s, t, None).item()
        2.0
    """

    kind = "response"

    def __init__(self, *, student: str = LOGITS, teacher: str = LOGITS) -> None:
        super().__init__(student=student, teacher=teacher)

    @override
    def bind(self, responses: Responses) -> None:
        super().bind(responses)
        if responses.form not in (None, Form.VALUES) and self.student_taps == (responses.tap,):
            raise ValueError(
                f"GaussianKL compares values with their variances, and the outputs of the task are of the form "
                f"{responses.form.value!r}; take the task regression"
            )

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> Tensor:
        return gaussian_kl(student[self.student_taps[0]], teacher[self.teacher_taps[0]])
