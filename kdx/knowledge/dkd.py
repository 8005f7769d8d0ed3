"""Decoupled knowledge distillation: target class and other classes weighted apart."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS
from kdx.features.operands import in_full_precision
from kdx.knowledge.labels import label_masks
from kdx.knowledge.response import Outputs, Response, class_axis
from kdx.losses import Over
from kdx.ops import softmax_kl
from kdx.ranges import check_number
from kdx.responses import class_rows

__all__ = ["DKD", "dkd"]


@in_full_precision
def dkd(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    class_dim: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """``T^2 (alpha TCKD + beta NCKD)``, a scalar; see :class:`DKD`.

    Args:
        student: logits of two classes or more, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``.
        teacher: logits of the same shape.
        targets: the labels, int64, of that shape without the classes; ``-100`` marks an element without one, which
            counts for nothing.
        temperature: T > 0.
        alpha: weight of the target class's term.
        beta: weight of the other classes' term.
        class_dim: axis of the classes, where it is another one.
        backend: of :func:`kdx.ops.softmax_kl`.

    Raises:
        ValueError: shapes that do not fit, or a single class.
    """
    dim = class_axis(student, teacher, class_dim)
    is_target, labelled = label_masks("DKD", student, targets, dim)
    student, teacher = class_rows(student, dim), class_rows(teacher, dim)

    scale = temperature**2
    # The two probabilities (p_y, 1 - p_y) are the softmax of two logits: nothing saturates, whatever the gap.
    pair_s, pair_t = _binary(student / temperature, is_target), _binary(teacher / temperature, is_target)
    tckd = scale * softmax_kl(pair_s, pair_t, mask=labelled, backend=backend)
    others_s, others_t = student.masked_fill(is_target, -torch.inf), teacher.masked_fill(is_target, -torch.inf)
    nckd = softmax_kl(others_s, others_t, temperature=temperature, mask=labelled, backend=backend)
    return alpha * tckd + beta * nckd


def _binary(logits: Tensor, is_target: Tensor) -> Tensor:
    """``[N, C]`` -> ``[N, 2]``: logits whose softmax is the target's probability and that of all others."""
    target = logits.masked_fill(~is_target, 0).sum(dim=1)
    others = logits.masked_fill(is_target, -torch.inf).logsumexp(dim=1)
    return torch.stack((target, others), dim=1)


class DKD(Response):
    """Soft targets taken apart: how sure the teacher is of the label, and how the other classes compare.

    Loss: ``T^2 (alpha TCKD + beta NCKD)``, KLs summed over classes and averaged over the rows with a label.
    ``TCKD = KL((p_t,y, 1 - p_t,y) || (p_s,y, 1 - p_s,y))``; ``NCKD`` is the KL between the softmaxes over the classes
    other than the label. Soft targets are ``TCKD + (1 - p_t,y) NCKD`` exactly; NCKD is 0 with two classes. Gradients
    reach both sides and stay finite at any gap between logits. Needs integer targets.

    The authors raise the weight of this term linearly from 0 over the first 20 epochs on CIFAR-100 (one epoch on
    ImageNet); :class:`kdx.schemes.Warmup` as the term's weight does that. Beside it the cross-entropy keeps its
    full weight 1. Their code and paper agree; the code takes the logarithm of a softmax, which has no gradient where it
    underflows.

    Args:
        temperature: T > 0; 4 on CIFAR-100, 1 on ImageNet.
        alpha: weight of TCKD, 1 in the authors' settings.
        beta: weight of NCKD; the authors' settings go from 2 to 8 on CIFAR-100 and take 0.5 on ImageNet.
        class_dim: axis of the classes, see :class:`kdx.knowledge.Response`; None: what the task says.
        vocabulary: n, to compare the first n classes of both sides, see :class:`kdx.knowledge.Response`; None: all.
        student: tap of the student's logits, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``.
        teacher: tap of the teacher's logits, the same shape.
        backend: kernel backend of :func:`kdx.ops.softmax_kl`.

    Paper: Zhao et al., Decoupled Knowledge Distillation, CVPR 2022, https://arxiv.org/abs/2203.08679.

    Example:
        >>> import torch
        >>> from kdx.batch import Batch
        >>> from kdx.capture import Captured
        >>> s, t = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[4.0, 2.0, 0.0]])
        >>> component, batch = DKD(temperature=4.0), Batch(None, torch.tensor([0]))
        >>> round(component(Captured({"logits": s}), Captured({"logits": t}), batch).item(), 4)
        4.3153
    """

    over = Over.LABELLED

    def __init__(
        self,
        temperature: float = 4.0,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        class_dim: int | None = None,
        vocabulary: int | None = None,
        student: str = LOGITS,
        teacher: str = LOGITS,
        backend: str = "auto",
    ) -> None:
        super().__init__(class_dim=class_dim, void=True, vocabulary=vocabulary, student=student, teacher=teacher)
        self.temperature = check_number("temperature", temperature, above=0)
        self.alpha, self.beta = check_number("alpha", alpha, least=0), check_number("beta", beta, least=0)
        self.backend = backend

    @override
    def compare(self, outputs: Outputs) -> Tensor:
        return dkd(
            outputs.student,
            outputs.teacher,
            outputs.targets,
            temperature=self.temperature,
            alpha=self.alpha,
            beta=self.beta,
            class_dim=outputs.dim,
            backend=self.backend,
        )

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, alpha={self.alpha}, beta={self.beta}"
