"""Sigmoid targets: the teacher's softened probability of each label."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import LOGITS, Captured
from kdx.features.operands import in_full_precision
from kdx.knowledge.response import Outputs, Response, class_axis
from kdx.losses import Count, Over
from kdx.ranges import check_number
from kdx.responses import Form

__all__ = ["SigmoidTargets", "sigmoid_kl"]


@in_full_precision
def sigmoid_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    class_dim: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """KL of Bernoulli distributions summed over labels, a scalar, 0 where nothing counts; see :class:`SigmoidTargets`.

    ``mask``, bool, of the logits' shape without the labels, says which elements count.
    """
    dim = class_axis(student, teacher, class_dim, softmax=False)
    s, t = student / temperature, teacher / temperature
    there, not_there = t.sigmoid(), (-t).sigmoid()
    kl = there * (F.logsigmoid(t) - F.logsigmoid(s)) + not_there * (F.logsigmoid(-t) - F.logsigmoid(-s))
    each = kl.sum(dim)
    if mask is None:
        return temperature**2 * each.sum() / max(1, each.numel())
    return temperature**2 * each.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


class SigmoidTargets(Response):
    """Temperature-softened KL divergence between the probabilities that teacher and student give each label.

    Loss: ``T^2 sum_c KL(Bernoulli(sigmoid(z_t / T)) || Bernoulli(sigmoid(z_s / T)))``, averaged over the samples. It is
    computed from log-sigmoids, so that logits of any size keep their digits and their gradient; one that is infinite
    gives NaN. The gradient reaches both sides. An empty batch gives 0.

    It is the term of the paper's MLD, which has ``T = 1`` and, for MS-COCO, the weight 10 beside the binary
    cross-entropy's mean; the authors' code clamps probabilities to ``1e-8 .. 1 - 1e-8``, beyond which it has no
    gradient.

    Args:
        temperature: T > 0; the paper's is 1.
        class_dim: axis of the labels, see :class:`kdx.knowledge.Response`; None: what the task says.
        void: whether elements with target -100 teach nothing; None: what the task says.
        student: tap of the student's logits, ``[N, C]``, or ``[N]`` or ``[N, 1]`` of yes and no.
        teacher: tap of the teacher's logits, the same shape.

    Raises:
        ValueError: a temperature that is not above 0; outputs of a task whose logits are not those of sigmoids.

    Paper: Yang et al., Multi-Label Knowledge Distillation, ICCV 2023, https://arxiv.org/abs/2308.06453; code:
    https://github.com/penghui-yang/L2D.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"logits": torch.tensor([[0.0, 0.0]])}), Captured({"logits": torch.tensor([[4.0, 0.0]])})
        >>> round(SigmoidTargets()(s, t, None).item(), 4)
        0.6031
    """

    form = Form.BERNOULLI

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        class_dim: int | None = None,
        void: bool | None = None,
        student: str = LOGITS,
        teacher: str = LOGITS,
    ) -> None:
        super().__init__(class_dim=class_dim, void=void, student=student, teacher=teacher)
        self.temperature = check_number("temperature", temperature, above=0)

    @override
    def outputs(self, student: Captured, teacher: Captured, batch: Batch | None) -> Outputs:
        (s,), (t,) = self.student_taps, self.teacher_taps
        if student[s].dim() == teacher[t].dim() == 1:
            student, teacher = _with_label_axis(student, s), _with_label_axis(teacher, t)
        return super().outputs(student, teacher, batch)

    @override
    def mean_over(self, student: Captured, batch: Batch) -> Over | Count:
        (tap,) = self.student_taps
        return super().mean_over(_with_label_axis(student, tap) if student[tap].dim() == 1 else student, batch)

    @override
    def compare(self, outputs: Outputs) -> Tensor:
        options: dict[str, Any] = {"class_dim": outputs.dim, "mask": outputs.mask}
        return sigmoid_kl(outputs.student, outputs.teacher, temperature=self.temperature, **options)

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def _with_label_axis(captured: Captured, tap: str) -> Captured:
    """Outputs ``[N]`` of yes and no as ``[N, 1]``."""
    return Captured({tap: captured[tap][:, None]})
