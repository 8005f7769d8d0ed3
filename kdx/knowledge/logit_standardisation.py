"""Logit standardisation: the pattern of the logits without their scale."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import LOGITS, Captured
from kdx.features.centring import centred
from kdx.features.operands import Variant, check_choice
from kdx.knowledge.base import Knowledge
from kdx.knowledge.response import Response
from kdx.knowledge.soft_targets import SoftTargets
from kdx.losses import Count, LossTerm, Over
from kdx.options import check_options
from kdx.ref import Ref, RefLike
from kdx.registry import default_plugins
from kdx.responses import Responses

__all__ = ["LogitStandardisation", "standardise"]


def standardise(
    logits: Tensor, *, class_dim: int | None = None, variant: Variant = "code", epsilon: float = 1e-7
) -> Tensor:
    """``(z - mean) / (std + epsilon)`` over the classes of logits, in float32 (float64 for float64 logits).

    Logits are ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``; ``class_dim`` is the axis of the classes where it
    is another one. See :class:`LogitStandardisation` for the two standard deviations. Equal logits become zeros,
    without gradient; classes with a -inf become NaN.
    """
    check_choice("variant", variant, ("paper", "code"))
    with torch.autocast(logits.device.type, enabled=False):
        z = logits if logits.dtype == torch.float64 else logits.float()
        dim = Responses(class_dim=class_dim).axis(logits.shape)
        deviation, square = centred(z, dim)
        divisor = max(1, logits.shape[dim] - (variant == "code"))
        return deviation / ((square.masked_fill(square == 0, 1) / divisor).sqrt() + epsilon)


class LogitStandardisation(Knowledge):
    """Standardises the logits of both sides per sample and hands them to another loss, soft targets by default.

    Loss: ``T^2 KL(softmax(Z(z_t) / T) || softmax(Z(z_s) / T))``, averaged over the batch, with
    ``Z(z) = (z - mean(z)) / (std(z) + 1e-7)`` over the classes; or any loss of logits given as ``around``. The student
    need not reach the range of the teacher's logits, only their pattern: the loss does not change under
    ``z -> a z + b`` with ``a > 0`` on either side. Gradients reach both sides, through mean and deviation too.

    ``std`` divides by C - 1 in the authors' code (``"code"``) and by C in the paper (``"paper"``), which amounts to a
    slightly different temperature. A row of equal logits becomes zeros without gradient; logits of -inf are not
    allowed here.

    Weight: 9 beside .1 CE for soft targets at T = 2 on CIFAR-100.

    Args:
        temperature: T > 0 of the soft targets; 2 if not given. Not together with ``around``.
        around: the loss to wrap, a component on logits such as ``DKD(temperature=2.0)``; in a recipe its name and
            options, ``{name: dkd, temperature: 2.0}``.
        variant: ``"code"`` or ``"paper"``, see above.
        class_dim: axis of the classes, see :class:`kdx.knowledge.Response`; None: what the task says. Not together with
            ``around``, which has its own.
        void: whether elements with target -100 teach nothing; None: what the task says. Not together with ``around``.
        vocabulary: n, to compare the first n classes of both sides, see :class:`kdx.knowledge.Response`; None:
            all. Not together with ``around``.
        student: tap of the student's logits, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``. Not together with
            ``around``.
        teacher: tap of the teacher's logits, the same shape.

    Paper: Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024, https://arxiv.org/abs/2403.01427;
    code: https://github.com/sunshangquan/logit-standardization-KD.

    Example:
        >>> s = Captured({"logits": torch.tensor([[0.0, 1.0, 3.0]])})
        >>> t = Captured({"logits": torch.tensor([[5.0, 25.0, 65.0]])})
        >>> round(LogitStandardisation()(s, t, None).item(), 4)
        0.0
    """

    kind = "response"

    def __init__(
        self,
        temperature: float | None = None,
        *,
        around: Knowledge | RefLike | None = None,
        variant: Variant = "code",
        class_dim: int | None = None,
        void: bool | None = None,
        vocabulary: int | None = None,
        student: str = LOGITS,
        teacher: str = LOGITS,
    ) -> None:
        if isinstance(around, Ref | str | Mapping):
            around = _component(Ref.of(around, "around"))
        if around is None:
            around = SoftTargets(
                2.0 if temperature is None else temperature,
                class_dim=class_dim,
                void=void,
                vocabulary=vocabulary,
                student=student,
                teacher=teacher,
            )
        elif (temperature, class_dim, void, vocabulary, student, teacher) != (None, None, None, None, LOGITS, LOGITS):
            raise ValueError(
                f"around={around!r} has its own temperature, class_dim, void, vocabulary and taps; give them to it, "
                "not to logit-standardisation"
            )
        elif around.kind != "response":
            raise ValueError(f"around: expected knowledge of kind 'response', got {around!r} of kind {around.kind!r}")
        super().__init__(student=around.student_taps, teacher=around.teacher_taps)
        check_choice("variant", variant, ("paper", "code"))
        self.around = around
        self.over = around.over
        self.mean_over_samples = around.mean_over_samples
        self.variant = variant

    @property
    @override
    def ready(self) -> bool:
        return self.around.ready

    @override
    def setup(self, student: Captured, teacher: Captured) -> None:
        self.around.setup(*self._standardised(student, teacher))

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> LossTerm:
        loss: LossTerm = self.around(*self._standardised(student, teacher), batch)
        return loss

    @override
    def mean_over(self, student: Captured, batch: Batch) -> Over | Count:
        return self.around.mean_over(student, batch)

    def _standardised(self, student: Captured, teacher: Captured) -> tuple[Captured, Captured]:
        def of(captured: Captured, taps: tuple[str, ...], side: str) -> Captured:
            values = {
                name: standardise(given, class_dim=self._axis(given), variant=self.variant)
                for name in captured.names(taps)
                for given in [self._narrowed(captured[name], side)]
            }
            return captured.having(captured | values)

        return of(student, self.student_taps, "student"), of(teacher, self.teacher_taps, "teacher")

    def _narrowed(self, logits: Tensor, side: str) -> Tensor:
        return self.around.narrowed(logits, side) if isinstance(self.around, Response) else logits

    def _axis(self, logits: Tensor) -> int:
        return (self.around if isinstance(self.around, Response) else self.responses).axis(logits.shape)

    @override
    def extra_repr(self) -> str:
        return f"variant={self.variant!r}"


def _component(ref: Ref) -> Knowledge:
    """The component that a recipe names."""
    target = default_plugins().load("knowledge", ref.name)
    component: Knowledge = target(**check_options(f"around ({ref.name})", target, ref.options))
    return component
