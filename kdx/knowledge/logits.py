"""Logits: the student regresses the teacher's logits."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS
from kdx.features.operands import Variant, check_choice, in_full_precision
from kdx.knowledge.response import Outputs, Response, class_axis

__all__ = ["Logits", "match_logits"]


@in_full_precision
def match_logits(
    student: Tensor,
    teacher: Tensor,
    *,
    class_dim: int | None = None,
    mask: Tensor | None = None,
    variant: Variant = "code",
) -> Tensor:
    """Squared error between logits, a scalar, 0 where nothing counts; see :class:`Logits`.

    ``mask``, bool, of the logits' shape without the classes, says which elements count.
    """
    dim = class_axis(student, teacher, class_dim, softmax=False)
    check_choice("variant", variant, ("paper", "code"))
    square = student - teacher
    if mask is None:
        total = square.square().sum()
        elements: Tensor | int = max(1, student.numel() // max(1, student.shape[dim]))
    else:
        total = square.masked_fill(~mask.unsqueeze(dim), 0).square().sum()
        elements = mask.sum().clamp(min=1)
    return total / (2 * elements if variant == "paper" else elements * student.shape[dim])


class Logits(Response):
    """Squared error between the logits of student and teacher.

    Loss: ``mean((z_s - z_t)^2)`` over samples (tokens, pixels) and classes (``"code"``, the common form), or
    ``1/2 sum_c (z_s - z_t)^2`` averaged over samples (``"paper"``; C/2 times as large). No temperature, no ``T^2``;
    for a high temperature and rows of equal mean, soft targets (``T^2 KL``) tend to half of the mean.
    Gradients reach both sides. A logit of -inf gives inf or NaN: leave masked classes out.

    Args:
        variant: ``"code"`` or ``"paper"``, the reductions above.
        class_dim: axis of the classes, see :class:`kdx.knowledge.Response`; None: what the task says.
        void: whether elements with target -100 teach nothing; None: what the task says.
        vocabulary: n, to compare the first n classes of both sides, see :class:`kdx.knowledge.Response`; None: all.
        student: tap of the student's logits, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``.
        teacher: tap of the teacher's logits, the same shape.

    Paper: Ba, Caruana, Do Deep Nets Really Need to be Deep?, NeurIPS 2014, https://arxiv.org/abs/1312.6184, equation 1.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"logits": torch.tensor([[0.0, 0.0]])}), Captured({"logits": torch.tensor([[4.0, 0.0]])})
        >>> Logits()(s, t, None).item(), Logits(variant="paper")(s, t, None).item()
        (8.0, 8.0)
    """

    form = None

    def __init__(
        self,
        *,
        variant: Variant = "code",
        class_dim: int | None = None,
        void: bool | None = None,
        vocabulary: int | None = None,
        student: str = LOGITS,
        teacher: str = LOGITS,
    ) -> None:
        super().__init__(class_dim=class_dim, void=void, vocabulary=vocabulary, student=student, teacher=teacher)
        check_choice("variant", variant, ("paper", "code"))
        self.variant = variant

    @override
    def compare(self, outputs: Outputs) -> Tensor:
        return match_logits(
            outputs.student, outputs.teacher, class_dim=outputs.dim, mask=outputs.mask, variant=self.variant
        )

    @override
    def extra_repr(self) -> str:
        return f"variant={self.variant!r}"
