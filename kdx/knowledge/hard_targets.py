"""Hard targets: the class that the teacher predicts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from kdx.batch import IGNORE
from kdx.capture import LOGITS
from kdx.features.operands import in_full_precision
from kdx.knowledge.response import Outputs, Response, class_axis
from kdx.responses import class_rows

__all__ = ["HardTargets", "hard_targets"]


@in_full_precision
def hard_targets(
    student: Tensor, teacher: Tensor, *, class_dim: int | None = None, mask: Tensor | None = None
) -> Tensor:
    """Cross-entropy with the teacher's predicted class, a scalar, 0 where nothing counts; see :class:`HardTargets`.

    ``mask``, bool, of the logits' shape without the classes, says which elements count.
    """
    dim = class_axis(student, teacher, class_dim)
    rows = class_rows(student, dim)
    decisions = class_rows(teacher, dim).argmax(dim=1)  # [R]
    if mask is None:
        return F.cross_entropy(rows, decisions, reduction="sum") / max(1, rows.shape[0])
    decisions = decisions.masked_fill(~mask.flatten(), IGNORE)
    return F.cross_entropy(rows, decisions, ignore_index=IGNORE, reduction="sum") / mask.sum().clamp(min=1)


class HardTargets(Response):
    """Cross-entropy of the student with the class that the teacher predicts.

    Loss: ``CE(z_s, argmax_c z_t)``, averaged over the samples, tokens or pixels; of equal logits the first class is
    taken. No temperature, no ``T^2``. The gradient goes to the student; the teacher's prediction has none. A student
    logit of -inf at the predicted class gives inf.

    Args:
        class_dim: axis of the classes, see :class:`kdx.knowledge.Response`; None: what the task says.
        void: whether elements with target -100 teach nothing; None: what the task says.
        vocabulary: n, to compare the first n classes of both sides, see :class:`kdx.knowledge.Response`; None: all.
        student: tap of the student's logits, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``.
        teacher: tap of the teacher's logits, the same shape.

    Paper: Lee, Pseudo-Label, ICML workshop 2013; as hard-label distillation with weights 1/2 and 1/2 beside the labels:
    Touvron et al., Training data-efficient image transformers & distillation through attention, ICML 2021,
    https://arxiv.org/abs/2012.12877, equation 3.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"logits": torch.tensor([[0.0, 0.0]])}), Captured({"logits": torch.tensor([[4.0, 0.0]])})
        >>> round(HardTargets()(s, t, None).item(), 4)
        0.6931
    """

    def __init__(
        self,
        *,
        class_dim: int | None = None,
        void: bool | None = None,
        vocabulary: int | None = None,
        student: str = LOGITS,
        teacher: str = LOGITS,
    ) -> None:
        super().__init__(class_dim=class_dim, void=void, vocabulary=vocabulary, student=student, teacher=teacher)

    @override
    def compare(self, outputs: Outputs) -> Tensor:
        return hard_targets(outputs.student, outputs.teacher, class_dim=outputs.dim, mask=outputs.mask)
