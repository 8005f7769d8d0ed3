"""Multi-level logit distillation: predictions of samples, and how samples and classes resemble each other in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS
from kdx.features.gathering import whole_batch
from kdx.features.operands import Variant, check_choice, in_full_precision
from kdx.knowledge.response import Outputs, Response, class_axis
from kdx.ops import softmax_kl
from kdx.ranges import check_number
from kdx.responses import class_rows

__all__ = ["MLLD", "mlld"]

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)
"""Those of the authors' code."""


@in_full_precision
def mlld(
    student: Tensor,
    teacher: Tensor,
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    instance: float = 1.0,
    batch: float = 1.0,
    classes: float = 1.0,
    variant: Variant = "paper",
    class_dim: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Sum over temperatures of the weighted terms of three levels, a scalar, 0 where nothing counts.

    ``mask``, bool, of the logits' shape without the classes, says which elements count. See :class:`MLLD`.
    """
    dim = class_axis(student, teacher, class_dim)
    s, t = class_rows(student, dim), class_rows(teacher, dim)  # [R, C]
    if mask is not None:
        s, t = s[mask.flatten()], t[mask.flatten()]
    rows, width = s.shape
    if rows == 0:
        return student.sum() * 0
    unsure = _unsure(t) if variant == "code" else (1.0, 1.0)
    total = s.new_zeros(())
    for temperature in temperatures:
        q, p = (s / temperature).softmax(1), (t / temperature).softmax(1)
        of_rows = softmax_kl(s, t, temperature=temperature)  # T^2 is in it
        of_batch = (q @ q.T - p @ p.T).square().sum() / rows
        of_classes = (q.T @ q - p.T @ p).square().sum() / width
        total = total + unsure[0] * (instance * of_rows + batch * of_batch) + unsure[1] * classes * of_classes
    return total


def _unsure(teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the samples and of the classes of which the teacher is at most as sure as in the median."""
    p = teacher.softmax(1)
    found = []
    for sure in (p.amax(1), p.sum(0)):
        found.append((sure <= sure.quantile(0.5)).to(p.dtype).mean())
    return found[0], found[1]


class MLLD(Response):
    """Predictions at several temperatures, compared by sample, by pairs of samples and by pairs of classes.

    Loss: the sum over temperatures T of ``instance T^2 mean KL(p || q)``, ``batch sum (q q' - p p')^2 / N`` and
    ``classes sum (q' q - p' p)^2 / C``, with the probabilities ``p`` of the teacher and ``q`` of the student at T as
    matrices ``[N, C]``: their products are alike where two samples, or two classes, are predicted alike. ``T^2`` is on
    the KL alone. Gradients reach both sides. The batch and class terms compare samples: on several ranks they are taken
    over the whole batch, and over micro-batches they differ from one batch. Memory: ``N^2 + C^2`` numbers a side.

    ``variant="code"``: the authors' code finds the samples and the classes of which the teacher is least sure, those up
    to the median, but multiplies the mask with losses that are means already. So what it does is multiply the first two
    levels by the share of such samples and the third by that of such classes, about a half; so does this. ``"paper"``
    has all. The authors add the same loss on a second, strongly augmented view of each sample, without the masks and
    the class term: in kdx that is another scheme or a data set whose batches hold both views.

    The authors weigh each level by 0.9, the cross-entropy by 0.1.

    Args:
        temperatures: all > 0; 2 to 6 as in the authors' code.
        instance: weight of the samples' term, at least 0.
        batch: weight of the term of pairs of samples, at least 0.
        classes: weight of the term of pairs of classes, at least 0.
        variant: ``"paper"`` or ``"code"``, see above.
        class_dim: axis of the classes, see :class:`kdx.knowledge.Response`; None: what the task says.
        void: whether elements with target -100 teach nothing; None: what the task says.
        vocabulary: n, to compare the first n classes of both sides, see :class:`kdx.knowledge.Response`; None: all.
        student: tap of the student's logits, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``.
        teacher: tap of the teacher's logits, the same shape.

    Paper: Jin, Wang, Lin, Multi-Level Logit Distillation, CVPR 2023,
    https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html; code:
    https://github.com/Jin-Ying/Multi-Level-Logit-Distillation.

    Example:
        >>> from kdx.capture import Captured
        >>> s = Captured({"logits": torch.tensor([[0.0, 1.0], [1.0, 0.0]])})
        >>> t = Captured({"logits": torch.tensor([[0.0, 3.0], [0.0, 3.0]])})
        >>> round(MLLD([1.0])(s, t, None).item(), 4)
        1.9836
    """

    mean_over_samples = False  # products of rows and of columns are statistics of the batch

    def __init__(
        self,
        temperatures: Sequence[float] = TEMPERATURES,
        *,
        instance: float = 1.0,
        batch: float = 1.0,
        classes: float = 1.0,
        variant: Variant = "paper",
        class_dim: int | None = None,
        void: bool | None = None,
        vocabulary: int | None = None,
        student: str = LOGITS,
        teacher: str = LOGITS,
    ) -> None:
        super().__init__(class_dim=class_dim, void=void, vocabulary=vocabulary, student=student, teacher=teacher)
        self.temperatures = tuple(check_number("temperatures", value, above=0) for value in temperatures)
        if not self.temperatures:
            raise ValueError("temperatures: expected one or more, got none; 2 to 6 are the default")
        self.instance = check_number("instance", instance, least=0)
        self.batch = check_number("batch", batch, least=0)
        self.classes = check_number("classes", classes, least=0)
        if self.instance == self.batch == self.classes == 0:
            raise ValueError("instance, batch and classes are all 0, which teaches nothing; give one of them a weight")
        check_choice("variant", variant, get_args(Variant))
        self.variant: Variant = variant

    @override
    def compare(self, outputs: Outputs) -> Tensor:
        mask = outputs.mask
        return mlld(
            whole_batch(outputs.student),
            whole_batch(outputs.teacher),
            temperatures=self.temperatures,
            instance=self.instance,
            batch=self.batch,
            classes=self.classes,
            variant=self.variant,
            class_dim=outputs.dim,
            mask=None if mask is None else whole_batch(mask.to(torch.uint8)).bool(),
        )

    @override
    def extra_repr(self) -> str:
        return f"temperatures={self.temperatures}, variant={self.variant!r}"
