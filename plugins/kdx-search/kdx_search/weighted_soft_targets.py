"""Weighted soft targets: the teacher is heard on each sample as far as the student is still behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from kdx import LOGITS, Over
from kdx.authoring import check_number
from kdx.features import in_full_precision
from kdx.knowledge import Outputs, Response, class_axis, class_rows, label_masks

__all__ = ["WeightedSoftTargets", "weighted_soft_targets"]

_LEAST = 1e-7
"""Beside the teacher's loss, by which is divided, as the authors have it."""


@in_full_precision
def weighted_soft_targets(
    student: Tensor, teacher: Tensor, targets: Any, *, temperature: float = 2.0, class_dim: int | None = None
) -> Tensor:
    """``T^2`` times the mean of ``(1 - exp(-CE(z_s, y) / CE(z_t, y))) KL(p_t || p_s)``, a scalar.

    Args:
        student: logits of two classes or more, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``.
        teacher: logits of the same shape.
        targets: the labels, int64, of that shape without the classes; ``-100`` marks an element without one, whose
            weight is 1.
        temperature: T > 0 of the two softmaxes; the losses in the weight have none.
        class_dim: axis of the classes, where it is another one.

    Raises:
        ValueError: shapes that do not fit, a single class, or targets that are no labels.
    """
    dim = class_axis(student, teacher, class_dim)
    is_target, labelled = label_masks("WeightedSoftTargets", student, targets, dim)
    s, t = class_rows(student, dim), class_rows(teacher, dim)  # [R, C]
    weight = gap_weights(s, t, is_target, labelled)  # [R]
    p, log_q = (t / temperature).softmax(1), (s / temperature).log_softmax(1)
    log_p = (t / temperature).log_softmax(1)
    rows = (p * (log_p - log_q).masked_fill(p == 0, 0)).sum(1)  # [R]
    return temperature**2 * (weight * rows).sum() / max(1, rows.shape[0])


def gap_weights(student: Tensor, teacher: Tensor, is_target: Tensor, labelled: Tensor) -> Tensor:
    """``1 - exp(-CE_s / CE_t)`` of rows of logits ``[R, C]``, without a gradient; 1 for a row without a label."""
    with torch.no_grad():
        own, theirs = (-z.log_softmax(1).masked_fill(~is_target, 0).sum(1) for z in (student, teacher))
        return (-torch.expm1(-own / (theirs + _LEAST))).masked_fill(~labelled, 1.0)


class WeightedSoftTargets(Response):
    """Soft targets whose weight on each sample follows the gap between student and teacher that is left.

    Loss: ``T^2 w KL(softmax(z_t / T) || softmax(z_s / T))``, summed over classes, averaged over the samples, tokens or
    pixels, with ``w = 1 - exp(-CE(z_s, y) / CE(z_t, y))``, cross-entropies with the label and without a temperature.
    Where the student's loss is far above the teacher's, ``w`` is near 1; where it has caught up it is 0.63, and it goes
    to 0 as the student becomes surer of the label than the teacher is, so that the teacher's doubt no longer holds it
    back. The weight has no gradient. The authors write the cross-entropy with the soft labels; the divergence here has
    the same gradient to the student. A sample without a label (``-100``) has the weight 1: where the labels are few
    the rest is taught as by plain soft targets.

    Beside it the cross-entropy with the label keeps its full weight 1 in the authors' runs, and this term 2.5.

    Args:
        temperature: T > 0; 2 as in the authors' code.
        class_dim: axis of the classes, see :class:`kdx.knowledge.Response`; None: what the task says.
        student: tap of the student's logits, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``.
        teacher: tap of the teacher's logits, the same shape.

    Paper: Zhou et al., Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective, ICLR
    2021, https://arxiv.org/abs/2102.00650; code: https://github.com/bellymonster/Weighted-Soft-Label-Distillation.

    Example:
        >>> from kdx import Batch
        >>> from kdx import Captured
        >>> s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 0.0]])
        >>> batch = Batch(None, torch.tensor([0]))
        >>> round(WeightedSoftTargets(4.0)(Captured({"logits": s}), Captured({"logits": t}), batch).item(), 4)
        1.7751
    """

    over = Over.ROWS

    def __init__(
        self,
        temperature: float = 2.0,
        *,
        class_dim: int | None = None,
        student: str = LOGITS,
        teacher: str = LOGITS,
    ) -> None:
        super().__init__(class_dim=class_dim, void=False, student=student, teacher=teacher)
        self.temperature = check_number("temperature", temperature, above=0)

    @override
    def compare(self, outputs: Outputs) -> Tensor:
        return weighted_soft_targets(
            outputs.student,
            outputs.teacher,
            outputs.targets,
            temperature=self.temperature,
            class_dim=outputs.dim,
        )

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
