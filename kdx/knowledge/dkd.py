"""Decoupled knowledge distillation: target class and other classes weighted apart."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from kdx.batch import IGNORE, Batch
from kdx.capture import LOGITS, Captured
from kdx.features.operands import check_same_shape, in_full_precision
from kdx.knowledge.base import Knowledge
from kdx.losses import Over
from kdx.ops import softmax_kl

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
    backend: str = "auto",
) -> Tensor:
    """``T^2 (alpha TCKD + beta NCKD)``, a scalar; see :class:`DKD`.

    Args:
        student: logits ``[..., C]`` with C >= 2.
        teacher: logits of the same shape.
        targets: the labels, int64 ``[...]``; ``-100`` marks a row without one, which counts for nothing.
        temperature: T > 0.
        alpha: weight of the target class's term.
        beta: weight of the other classes' term.
        backend: of :func:`kdx.ops.softmax_kl`.

    Raises:
        ValueError: shapes that do not fit, or a single class.
    """
    check_same_shape(student, teacher)
    classes = student.shape[-1]
    if classes < 2:
        raise ValueError(f"student: expected logits of 2 classes or more, got {list(student.shape)}; DKD splits them")
    if targets.shape != student.shape[:-1]:
        raise ValueError(
            f"targets: expected one label per row, shape {list(student.shape[:-1])} for logits {list(student.shape)}, "
            f"got {list(targets.shape)}; DKD needs integer labels, not probabilities"
        )
    targets = targets.reshape(-1)
    labelled = targets != IGNORE
    is_target = torch.zeros(targets.shape[0], classes, dtype=torch.bool, device=student.device)  # [N, C]
    is_target = is_target.scatter(1, targets.clamp(min=0)[:, None], 1)
    student, teacher = student.reshape(-1, classes), teacher.reshape(-1, classes)

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


class DKD(Knowledge):
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
        student: tap of the student's logits ``[N, C]``.
        teacher: tap of the teacher's logits, the same shape.
        backend: kernel backend of :func:`kdx.ops.softmax_kl`.

    Paper: Zhao et al., Decoupled Knowledge Distillation, CVPR 2022, https://arxiv.org/abs/2203.08679.

    Example:
        >>> import torch
        >>> s, t = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[4.0, 2.0, 0.0]])
        >>> component, batch = DKD(temperature=4.0), Batch(None, torch.tensor([0]))
        >>> round(component(Captured({"logits": s}), Captured({"logits": t}), batch).item(), 4)
        4.3153
    """

    kind = "response"
    over = Over.LABELLED

    def __init__(
        self,
        temperature: float = 4.0,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        student: str = LOGITS,
        teacher: str = LOGITS,
        backend: str = "auto",
    ) -> None:
        super().__init__(student=student, teacher=teacher)
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self.temperature, self.alpha, self.beta = float(temperature), float(alpha), float(beta)
        self.backend = backend

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> Tensor:
        if not isinstance(batch.targets, Tensor):
            raise ValueError(
                f"batch.targets: DKD splits the classes at the label and needs integer labels [N], got "
                f"{type(batch.targets).__name__}; without labels use soft-targets"
            )
        return dkd(
            student[self.student_taps[0]],
            teacher[self.teacher_taps[0]],
            batch.targets,
            temperature=self.temperature,
            alpha=self.alpha,
            beta=self.beta,
            backend=self.backend,
        )

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, alpha={self.alpha}, beta={self.beta}"
