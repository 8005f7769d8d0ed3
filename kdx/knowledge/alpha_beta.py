"""Alpha-beta divergence: two numbers say how much large errors and confident classes weigh."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from kdx.capture import LOGITS
from kdx.knowledge.response import Outputs, Response, class_axis
from kdx.knowledge.token_surprisals import row_chunks
from kdx.ranges import check_number
from kdx.responses import class_rows

__all__ = ["AlphaBeta", "alpha_beta"]


def alpha_beta(
    student: Tensor,
    teacher: Tensor,
    *,
    alpha: float = 0.2,
    beta: float = 0.7,
    temperature: float = 1.0,
    class_dim: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """``T^2 D^(alpha, beta)(teacher || student)`` of logits, a scalar; see :class:`AlphaBeta`.

    ``mask``, bool, of the logits' shape without the classes, says which elements count.
    """
    dim = class_axis(student, teacher, class_dim)
    s, t = class_rows(student, dim), class_rows(teacher, dim)
    counts = torch.ones(len(s), dtype=torch.bool, device=s.device) if mask is None else mask.flatten()
    apply: Any = _Divergence.apply
    found: Tensor = apply(s, t.detach(), counts, float(alpha), float(beta), float(temperature))
    return found


class _Divergence(torch.autograd.Function):
    """Rows ``[R, C]`` of logits to the mean divergence, a few at a time; its gradient is made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, counts: Tensor, alpha: float, beta: float, temperature: float
    ) -> Tensor:
        wide = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
        asked = ctx.needs_input_grad[0]
        # rounded to the dtype of the logits once, behind the upstream factor, which may be a loss scale
        gradient = torch.zeros(student.shape, dtype=wide, device=student.device) if asked else student.new_empty(0)
        total = torch.zeros((), dtype=torch.float64, device=student.device)
        scale = temperature**2 / counts.sum().clamp(min=1).to(torch.float64)
        rows = torch.arange(len(student), device=student.device)
        if not torch.compiler.is_compiling():
            rows = rows[counts]
        with torch.autocast(student.device.type, enabled=False):
            for at in row_chunks(rows, 10 * student.shape[1], wide.itemsize):
                s, t = student[at].to(wide) / temperature, teacher[at].to(wide) / temperature
                losses, of_logits = _rows(s, t, alpha, beta, gradient=asked)
                total = total + torch.where(counts[at], losses, 0.0).sum(dtype=torch.float64)
                if asked:
                    of_logits = torch.where(counts[at].unsqueeze(1), of_logits, 0.0) * (scale / temperature)
                    gradient[at] = of_logits.to(gradient.dtype)
        ctx.save_for_backward(gradient)
        ctx.dtype = student.dtype
        return (total * scale).to(wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).to(ctx.dtype), None, None, None, None, None


def _rows(s: Tensor, t: Tensor, alpha: float, beta: float, *, gradient: bool) -> tuple[Tensor, Tensor]:
    """The divergence of each row ``[K]`` of tempered logits ``[K, C]``, and its gradient with respect to ``s``.

    With d = log p - log q, what a class adds is ``max(p, q)^(alpha + beta)`` times a function of -|d| that is 0 at 0,
    never negative, and taken from its series there: no difference of probabilities is formed.
    """
    log_q, log_p = s.log_softmax(1), t.log_softmax(1)
    none = (s == -torch.inf) & (t == -torch.inf)
    d = _log_ratio(s, t, log_q, log_p, none)
    larger, e = torch.maximum(log_q, log_p), -d.abs()
    ours, theirs = _part(e, alpha, beta), _part(e, beta, alpha)
    each = _power(larger, alpha + beta) * torch.where(d <= 0, ours, theirs)
    losses = torch.where(none, 0.0, each).sum(1)
    if not gradient:
        return losses, losses
    size = e if alpha == 0 else torch.expm1(alpha * e) / alpha
    of_log_q = _power(log_q, beta) * _power(larger, alpha) * torch.where(d <= 0, -size, size)
    of_log_q = torch.where(none, 0.0, of_log_q)
    return losses, of_log_q - log_q.exp() * of_log_q.sum(1, keepdim=True)


def _log_ratio(s: Tensor, t: Tensor, log_q: Tensor, log_p: Tensor, none: Tensor) -> Tensor:
    """``log p - log q``, exact where the two rows are near each other."""
    x = torch.where(none, 0.0, t - s)
    x = x - x.gather(1, log_q.argmax(1, keepdim=True))
    near = torch.where(none, 0.0, x.abs()).amax(1, keepdim=True) < 1
    close = torch.where(near & ~none, x, 0.0)
    exact = close - torch.log1p((log_q.exp() * torch.expm1(close)).sum(1, keepdim=True))
    return torch.where(none, 0.0, torch.where(near, exact, log_p - log_q))


def _part(e: Tensor, a: float, b: float) -> Tensor:
    """``(a expm1((a + b) e) - (a + b) expm1(a e)) / (a b (a + b))`` of e <= 0, with its limits where a or b is 0."""
    both = a + b
    if both == 0:
        return 0.5 * e.square()
    near = -e * max(a, b, both) < 0.5
    close = torch.where(near, e, 0.0)
    far = torch.where(near, -torch.inf, e)
    if b == 0:
        x = a * far.clamp(min=-1e4 / a)
        whole = (x.exp() * (x - 1) + 1) / a**2
        # (x e^x - expm1(x)) / x^2 is the sum of x^k (k + 1) / (k + 2)!
        return torch.where(near, close.square() * _series(a * close, times=1), whole)
    if a == 0:
        whole = (torch.expm1(b * e) - b * e) / b**2
        return torch.where(near, close.square() * _series(b * close), whole)
    whole = (a * torch.expm1(both * far) - both * torch.expm1(a * far)) / (a * b * both)
    exact = close.square() * (both * _series(both * close) - a * _series(a * close)) / b
    return torch.where(near, exact, whole)


def _series(x: Tensor, times: int = 0) -> Tensor:
    """``(expm1(x) - x) / x^2`` for |x| <= 1/2, its k-th coefficient multiplied by ``1 + k times``."""
    coefficients = [0.5]
    for k in range(1, 14):
        coefficients.append(coefficients[-1] / (k + 2))
    found = torch.zeros_like(x)
    for k in range(13, -1, -1):
        found = found * x + coefficients[k] * (1 + k * times)
    return found


def _power(log: Tensor, exponent: float) -> Tensor:
    """``exp(log)`` to a power of 0 or more."""
    return torch.ones_like(log) if exponent == 0 else (exponent * log).exp()


class AlphaBeta(Response):
    """Alpha-beta divergence between softened class probabilities, which holds forward and reverse KL as its corners.

    Loss: ``T^2 D(p || q)`` with teacher p and student q, averaged over the samples, tokens or pixels, where ::

        D = 1/(alpha beta) sum_i [alpha/(alpha+beta) p_i^(alpha+beta) + beta/(alpha+beta) q_i^(alpha+beta)
                                  - p_i^alpha q_i^beta]

    Its limits: forward KL at (1, 0), reverse KL at (0, 1), half the squared distance of log-probabilities at (0, 0);
    (0.5, 0.5) is four times the squared Hellinger distance ``1 - sum sqrt(p q)``, and (1, 1) half the squared distance
    of probabilities. A small alpha looks at large errors, a large beta at what the student is sure of. It is never
    negative and exact near agreement, where rows are measured by ``log p - log q``. The gradient goes to the student,
    and cannot be differentiated again. Where alpha or beta is 0, the authors' code for language models divides by the
    other one once and not twice; here the divergence is continuous.

    Args:
        alpha: 0 or more.
        beta: 0 or more.
        temperature: T > 0; 1, as for language models.
        class_dim: axis of the classes, see :class:`kdx.knowledge.Response`; None: what the task says.
        void: whether elements with target -100 teach nothing; None: what the task says.
        vocabulary: n, to compare the first n classes of both sides, see :class:`kdx.knowledge.Response`; None: all.
        student: tap of the student's logits, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``.
        teacher: tap of the teacher's logits, the same shape.

    Paper: Wang et al., ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via
    alpha-beta-Divergence, ICML 2025, https://arxiv.org/abs/2505.04560; code: https://github.com/ghwang-s/abkd.

    Example:
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"logits": torch.tensor([[0.0, 0.0]])}), Captured({"logits": torch.tensor([[4.0, 0.0]])})
        >>> round(AlphaBeta(1.0, 0.0)(s, t, None).item(), 4), round(AlphaBeta(0.5, 0.5)(s, t, None).item(), 4)
        (0.6031, 0.8178)
    """

    def __init__(
        self,
        alpha: float = 0.2,
        beta: float = 0.7,
        *,
        temperature: float = 1.0,
        class_dim: int | None = None,
        void: bool | None = None,
        vocabulary: int | None = None,
        student: str = LOGITS,
        teacher: str = LOGITS,
    ) -> None:
        super().__init__(class_dim=class_dim, void=void, vocabulary=vocabulary, student=student, teacher=teacher)
        self.alpha = check_number("alpha", alpha, least=0)
        self.beta = check_number("beta", beta, least=0)
        self.temperature = check_number("temperature", temperature, above=0)

    @override
    def compare(self, outputs: Outputs) -> Tensor:
        return alpha_beta(
            outputs.student,
            outputs.teacher,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            class_dim=outputs.dim,
            mask=outputs.mask,
        )

    @override
    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}, temperature={self.temperature}"
