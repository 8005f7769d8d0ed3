"""DIST: the correlation of predictions instead of their divergence."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS
from kdx.features.centring import centred
from kdx.features.gathering import whole_batch
from kdx.features.operands import Variant, check_choice, in_full_precision
from kdx.knowledge.response import Outputs, Response, class_axis
from kdx.ranges import check_number
from kdx.responses import class_rows

__all__ = ["DIST", "dist"]

_EPSILON = 1e-8  # of the authors' code, beside the product of the two norms


@in_full_precision
def dist(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 4.0,
    inter_weight: float = 2.0,
    intra_weight: float = 2.0,
    class_dim: int | None = None,
    mask: Tensor | None = None,
    variant: Variant = "code",
) -> Tensor:
    """``T^2 (inter_weight inter + intra_weight intra)`` of logits, a scalar, 0 where nothing counts.

    ``mask``, bool, of the logits' shape without the classes, says which elements count. See :class:`DIST`.
    """
    dim = class_axis(student, teacher, class_dim)
    check_choice("variant", variant, ("paper", "code"))
    s, t = class_rows(student, dim), class_rows(teacher, dim)
    if mask is not None:
        s, t = s[mask.flatten()], t[mask.flatten()]
    q, p = (s / temperature).softmax(dim=1), (t / temperature).softmax(dim=1)  # [R, C]
    if q.shape[0] == 0:
        return student.sum() * 0
    epsilon = _EPSILON if variant == "code" else 0.0
    inter, intra = 1 - _pearson(q, p, 1, epsilon).mean(), 1 - _pearson(q, p, 0, epsilon).mean()
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def _pearson(a: Tensor, b: Tensor, dim: int, epsilon: float) -> Tensor:
    """Correlations along ``dim``; 0 where one side does not vary."""
    (a, square_a), (b, square_b) = centred(a, dim), centred(b, dim)
    product = (a * b).sum(dim=dim, keepdim=True)
    # Each norm by itself: the product of two small squares underflows long before the product of their roots.
    norm_a = square_a.masked_fill(square_a == 0, 1).sqrt()
    norm_b = square_b.masked_fill(square_b == 0, 1).sqrt()
    if epsilon == 0:
        return (a / norm_a * (b / norm_b)).sum(dim=dim)
    return (product / (norm_a * norm_b + epsilon)).squeeze(dim)


class DIST(Response):
    """Pearson correlation between the predictions of student and teacher, per sample and per class.

    Loss: ``T^2 (inter_weight inter + intra_weight intra)``, where ``inter`` is 1 minus the correlation between the rows
    of ``softmax(z_s / T)`` and ``softmax(z_t / T)``, averaged over samples, and ``intra`` the same between their
    columns, averaged over classes. It does not ask the student for the teacher's probabilities, only for a linear map
    of them, which a small student of a strong teacher can reach. Gradients reach both sides.

    ``"code"`` adds 1e-8 to the product of norms a correlation is divided by, as the authors do; that takes the weight
    off classes that neither side ever predicts. ``"paper"`` divides by the product alone. A row or column that does not
    vary (a batch of one, equal logits) has correlation 0 and no gradient. ``intra`` compares samples: on several ranks
    it is taken over the whole batch.

    Args:
        temperature: T > 0; 4 as in the common CIFAR-100 recipe, 1 in the authors' code for ImageNet.
        inter_weight: weight of the correlations per sample; 2, as in the authors' configurations for CIFAR-100 and
            ImageNet.
        intra_weight: weight of the correlations per class; 2, likewise.
        variant: ``"code"`` or ``"paper"``, see above.
        class_dim: axis of the classes, see :class:`kdx.knowledge.Response`; None: what the task says.
        void: whether elements with target -100 teach nothing; None: what the task says.
        vocabulary: n, to compare the first n classes of both sides, see :class:`kdx.knowledge.Response`; None: all.
        student: tap of the student's logits, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``.
        teacher: tap of the teacher's logits, the same shape.

    Paper: Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, https://arxiv.org/abs/2205.10536;
    code: https://github.com/hunto/image_classification_sota (``configs/strategies/distill``: ``kd_loss_weight: 2``).

    Example:
        >>> from kdx.capture import Captured
        >>> s = Captured({"logits": torch.tensor([[0.0, 1.0], [1.0, 0.0]])})
        >>> t = Captured({"logits": torch.tensor([[0.0, 3.0], [0.0, 3.0]])})
        >>> round(DIST(temperature=1.0)(s, t, None).item(), 4)  # rows correlate by 1 and -1, columns do not vary
        4.0
    """

    mean_over_samples = False  # its columns are statistics of the batch

    def __init__(
        self,
        temperature: float = 4.0,
        *,
        inter_weight: float = 2.0,
        intra_weight: float = 2.0,
        variant: Variant = "code",
        class_dim: int | None = None,
        void: bool | None = None,
        vocabulary: int | None = None,
        student: str = LOGITS,
        teacher: str = LOGITS,
    ) -> None:
        super().__init__(class_dim=class_dim, void=void, vocabulary=vocabulary, student=student, teacher=teacher)
        self.temperature = check_number("temperature", temperature, above=0)
        check_choice("variant", variant, ("paper", "code"))
        self.inter_weight = check_number("inter_weight", inter_weight, least=0)
        self.intra_weight = check_number("intra_weight", intra_weight, least=0)
        self.variant = variant

    @override
    def compare(self, outputs: Outputs) -> Tensor:
        mask = outputs.mask
        return dist(
            whole_batch(outputs.student),
            whole_batch(outputs.teacher),
            temperature=self.temperature,
            inter_weight=self.inter_weight,
            intra_weight=self.intra_weight,
            class_dim=outputs.dim,
            mask=None if mask is None else whole_batch(mask.to(torch.uint8)).bool(),
            variant=self.variant,
        )

    @override
    def extra_repr(self) -> str:
        weights = f"inter_weight={self.inter_weight}, intra_weight={self.intra_weight}"
        return f"temperature={self.temperature}, {weights}, variant={self.variant!r}"
