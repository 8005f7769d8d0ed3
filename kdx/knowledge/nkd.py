"""Normalised knowledge distillation: the label's class and the renormalised others, as two cross-entropies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS
from kdx.features.operands import in_full_precision
from kdx.knowledge.labels import label_masks
from kdx.knowledge.response import Outputs, Response, class_axis
from kdx.losses import Over
from kdx.ranges import check_number
from kdx.responses import class_rows

__all__ = ["NKD", "nkd"]


@in_full_precision
def nkd(
    student: Tensor,
    teacher: Tensor,
    targets: Any,
    *,
    temperature: float = 1.0,
    gamma: float = 1.5,
    class_dim: int | None = None,
) -> Tensor:
    """``-p_y log q_y - gamma T^2 sum_{i != y} p'_i log q'_i``, a scalar, 0 where nothing has a label; see :class:`NKD`.

    Args:
        student: logits of two classes or more, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``.
        teacher: logits of the same shape.
        targets: the labels, int64, of that shape without the classes; ``-100`` marks an element without one, which
            counts for nothing.
        temperature: T > 0, of the second term.
        gamma: weight of the second term.
        class_dim: axis of the classes, where it is another one.

    Raises:
        ValueError: shapes that do not fit, a single class, or targets that are no labels.
    """
    dim = class_axis(student, teacher, class_dim)
    is_target, labelled = label_masks("NKD", student, targets, dim)
    s, t = class_rows(student, dim), class_rows(teacher, dim)  # [R, C]
    own = _crossed(t.softmax(1), s.log_softmax(1), is_target)
    others_s, others_t = (z.masked_fill(is_target, -torch.inf) / temperature for z in (s, t))
    others = _crossed(others_t.softmax(1), others_s.log_softmax(1), ~is_target)
    rows = own + gamma * temperature**2 * others  # [R]
    return rows.masked_fill(~labelled, 0).sum() / labelled.sum().clamp(min=1)


def _crossed(p: Tensor, log_q: Tensor, where: Tensor) -> Tensor:
    """Cross-entropy of each row over some of its classes; a class of probability 0 adds 0, though its log is -inf."""
    return -(p * log_q.masked_fill(~where | (p == 0), 0)).masked_fill(~where, 0).sum(1)


class NKD(Response):
    """Cross-entropies of the label's class and, renormalised, of the other classes with the teacher's probabilities.

    Loss: ``-p_y log q_y - gamma T^2 sum_{i != y} p'_i log q'_i``, averaged over the rows with a label. ``p`` and ``q``
    are the softmaxes of teacher and student; ``p'`` and ``q'`` those of ``z / T`` over the classes other than the
    label's. Without that normalisation the two sides' sums over the other classes differ, and no student can make the
    second term smallest by being the teacher. The first term has no temperature. Both are cross-entropies, as the paper
    has them: the loss of a student that equals its teacher is not 0. Gradients reach both sides; they are finite at any
    gap between logits. With two classes the second term is 0. Needs integer targets; the authors take the largest entry
    of soft ones, which here is for the user to do: ``targets.argmax(1)``.

    Beside it the cross-entropy with the label keeps its full weight 1.

    Args:
        temperature: T > 0; 1 as in the authors' configurations.
        gamma: weight of the other classes, at least 0; 1.5 in the authors' configurations for teachers.
        class_dim: axis of the classes, see :class:`kdx.knowledge.Response`; None: what the task says.
        vocabulary: n, to compare the first n classes of both sides, see :class:`kdx.knowledge.Response`; None: all.
        student: tap of the student's logits, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``.
        teacher: tap of the teacher's logits, the same shape.

    Paper: Yang et al., From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels, ICCV 2023, https://arxiv.org/abs/2303.13005; code:
    https://github.com/yzd-v/cls_KD.

    Example:
        >>> from kdx.batch import Batch
        >>> from kdx.capture import Captured
        >>> s, t = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[4.0, 2.0, 0.0]])
        >>> batch = Batch(None, torch.tensor([0]))
        >>> round(NKD()(Captured({"logits": s}), Captured({"logits": t}), batch).item(), 4)
        1.5177
    """

    over = Over.LABELLED

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        gamma: float = 1.5,
        class_dim: int | None = None,
        vocabulary: int | None = None,
        student: str = LOGITS,
        teacher: str = LOGITS,
    ) -> None:
        super().__init__(class_dim=class_dim, void=True, vocabulary=vocabulary, student=student, teacher=teacher)
        self.temperature = check_number("temperature", temperature, above=0)
        self.gamma = check_number("gamma", gamma, least=0)

    @override
    def compare(self, outputs: Outputs) -> Tensor:
        return nkd(
            outputs.student,
            outputs.teacher,
            outputs.targets,
            temperature=self.temperature,
            gamma=self.gamma,
            class_dim=outputs.dim,
        )

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, gamma={self.gamma}"
