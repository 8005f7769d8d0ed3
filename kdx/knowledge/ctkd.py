"""Curriculum temperature: soft targets whose temperature is learned against the student."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.capture import LOGITS, Captured
from kdx.features.operands import check_choice, in_full_precision
from kdx.knowledge.response import Outputs, Response
from kdx.ranges import check_number, check_whole

__all__ = ["CTKD", "reversed_gradient", "tempered_kl"]

Per = Literal["batch", "sample"]


def reversed_gradient(x: Tensor, strength: Tensor | float) -> Tensor:
    """The same numbers, whose gradient is ``-strength`` times as large on the way back.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> y = reversed_gradient(x, 0.5) * 2
        >>> y.backward()
        >>> y.item(), x.grad.item()
        (6.0, -1.0)
    """
    return x.detach() - strength * (x - x.detach())


@in_full_precision
def tempered_kl(student: Tensor, teacher: Tensor, *, temperature: Tensor) -> Tensor:
    """``T^2 KL(softmax(z_t / T) || softmax(z_s / T))``, averaged over the rows, with a temperature that is a tensor.

    Args:
        student: logits ``[R, C]``, any float dtype; computed in float32 (float64 stays).
        teacher: of the same shape.
        temperature: 0-dim, or ``[R, 1]`` for one of each row; > 0.

    Returns:
        A scalar, 0 for no rows, with gradients to all three.

    Example:
        >>> z = torch.tensor([[1.0, 0.0]])
        >>> round(tempered_kl(torch.zeros(1, 2), 4 * z, temperature=torch.tensor(4.0)).item(), 4)
        1.7751
    """
    temperature = temperature.to(student.dtype)
    least = torch.finfo(student.dtype).min / 1e6  # a class of logit -inf has probability 0, and a gradient of 0 in T
    q, p = ((z.clamp(min=least) / temperature).log_softmax(1) for z in (student, teacher))
    # sum p (log p - log q) as sum p d + q - p, whose terms are of second order in d: at a high T all d are small
    d = p - q
    near = p.exp() * (torch.expm1(-d.clamp(-1, 1)) + d.clamp(-1, 1))
    rows = torch.where(d.abs() < 1, near, p.exp() * d + q.exp() - p.exp()).sum(1, keepdim=True)
    return (temperature**2 * rows).sum() / max(1, rows.shape[0])


class CTKD(Response):
    """Soft targets with a temperature that is learned to be hard for the student, more and more so.

    Loss: ``T^2 KL(softmax(z_t / T) || softmax(z_s / T))``, summed over classes, averaged over the samples, tokens or
    pixels, with ``T = least + span sigmoid(x)``. The student lowers it; the gradient that ``x`` gets is reversed, times
    ``strength``, so that ``x`` climbs. The strength goes from 0 to 1 as half a cosine over the first ``epochs`` epochs:
    ``(1 - cos(pi min(e, epochs) / epochs)) / 2`` in epoch e, counted from 1. Other gradients reach both sides.

    ``per="batch"``: x is one number, 1 at the start as in the authors' code, so that T starts at 15.6.
    ``per="sample"``: x is what a network of two layers makes of the logits of both, for each row by itself; it reads
    them without a gradient, so that the student is not taught through it. The authors have published code for the first
    only; the width of the second is ours.

    What is learned here is in the optimizer and in checkpoints, and no part of the exported student; with weight decay
    x is drawn to 0, as in the authors' code. In a loop of one's own call ``scheme.epoch_start(epoch, epochs)``; without
    it the strength stays that of the first epoch.

    Args:
        per: ``"batch"`` for one temperature, ``"sample"`` for one of each row.
        least: the smallest temperature, > 0; 1 as in the authors' code.
        span: T lies between ``least`` and ``least + span``, > 0; 20 as in the authors' code.
        epochs: over which the strength grows, at least 1; 10 as in the authors' scripts (of 240).
        width: hidden units of the network of ``per="sample"``.
        class_dim: axis of the classes, see :class:`kdx.knowledge.Response`; None: what the task says.
        void: whether elements with target -100 teach nothing; None: what the task says.
        vocabulary: n, to compare the first n classes of both sides, see :class:`kdx.knowledge.Response`; None: all.
        student: tap of the student's logits, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``.
        teacher: tap of the teacher's logits, the same shape.

    Paper: Li et al., Curriculum Temperature for Knowledge Distillation, AAAI 2023, https://arxiv.org/abs/2211.16231;
    code: https://github.com/zhengli97/CTKD.

    Example:
        >>> s, t = Captured({"logits": torch.zeros(1, 2)}), Captured({"logits": torch.tensor([[4.0, 0.0]])})
        >>> kd = CTKD()
        >>> loss = kd(s, t, None)
        >>> loss.backward()
        >>> round(kd.temperature_of(torch.zeros(1, 2), torch.zeros(1, 2)).item(), 2), kd.x.grad.item() < 0
        (15.62, True)
    """

    strength: Tensor

    def __init__(
        self,
        *,
        per: Per = "batch",
        least: float = 1.0,
        span: float = 20.0,
        epochs: int = 10,
        width: int = 64,
        class_dim: int | None = None,
        void: bool | None = None,
        vocabulary: int | None = None,
        student: str = LOGITS,
        teacher: str = LOGITS,
    ) -> None:
        super().__init__(class_dim=class_dim, void=void, vocabulary=vocabulary, student=student, teacher=teacher)
        check_choice("per", per, get_args(Per))
        self.per: Per = per
        self.least = check_number("least", least, above=0)
        self.span = check_number("span", span, above=0)
        self.epochs = check_whole("epochs", epochs, least=1)
        self.width = check_whole("width", width, least=1)
        self.x = nn.Parameter(torch.ones(())) if per == "batch" else None
        self.network: nn.Module | None = None
        self.register_buffer("strength", torch.tensor(self._strength(0)))

    def _strength(self, epoch: int) -> float:
        return (1 - math.cos(math.pi * min(epoch + 1, self.epochs) / self.epochs)) / 2

    @override
    def epoch_start(self, epoch: int, epochs: int) -> None:
        self.strength.fill_(self._strength(epoch))

    @property
    @override
    def ready(self) -> bool:
        return self.x is not None or self.network is not None

    @override
    def setup(self, student: Captured, teacher: Captured) -> None:
        if self.ready:
            return
        outputs = self.narrowed(student[self.student_taps[0]], "student")
        classes = outputs.shape[self.axis(outputs.shape)]
        network = nn.Sequential(nn.Linear(2 * classes, self.width), nn.ReLU(), nn.Linear(self.width, 1))
        self.network = network.to(outputs.device, torch.promote_types(outputs.dtype, torch.float32))

    def temperature_of(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The temperature of rows of logits ``[R, C]``: 0-dim, or ``[R, 1]`` for ``per="sample"``."""
        if self.x is not None:
            x: Tensor = self.x
        elif self.network is not None:
            logits = torch.cat([teacher, student], 1).detach().clamp(-1e4, 1e4)
            with torch.autocast(logits.device.type, enabled=False):
                x = self.network(logits.to(next(self.network.parameters()).dtype))
        else:
            raise RuntimeError("CTKD has no network yet; call scheme.setup(batch) before the optimizer is built")
        strength = self.strength.clone()  # the buffer may change before the backward pass
        return self.least + self.span * reversed_gradient(x, strength).sigmoid()

    @override
    def compare(self, outputs: Outputs) -> Tensor:
        s, t = outputs.rows()
        return tempered_kl(s, t, temperature=self.temperature_of(s, t))

    @override
    def extra_repr(self) -> str:
        return f"per={self.per!r}, least={self.least}, span={self.span}, epochs={self.epochs}"
