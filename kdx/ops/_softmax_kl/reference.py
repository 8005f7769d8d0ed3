"""softmax_kl in plain PyTorch: the definition of right, twice differentiable, in any float dtype.

`losses` and `gradient` are formulas, nothing else; README.md derives them. fp16 and bf16 are computed in fp32.
Every difference of probabilities is taken as expm1 of the log-ratio ``d``, because ``p - q`` has no correct digit left
once teacher and student nearly agree; every class adds a non-negative amount to the loss for the same reason.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdx.ops._dtypes import accumulator

FORWARD, REVERSE, JSD, SKEW_FORWARD, SKEW_REVERSE = range(5)
_APART = 16.0  # units of T between the maxima of student and teacher from which t - s is not taken


class Classes(NamedTuple):
    """Per class ``[O, C, I]``: student and teacher probability, ``d = log p - log q`` and ``p - q``."""

    q: Tensor
    p: Tensor
    d: Tensor
    p_less_q: Tensor


class Whole:
    """Maxima and sums over the classes of a row, from those of the part at hand: here the part is all there is."""

    def maximum(self, parts: Tensor) -> Tensor:
        """The maxima over all parts of the row."""
        return parts

    def total(self, parts: Tensor) -> Tensor:
        """The sums over all parts of the row."""
        return parts


_ALONE = Whole()


def unsupported(student: Tensor, teacher: Tensor) -> str | None:
    """None: the reference runs everywhere."""
    return None


def classes_of(student: Tensor, teacher: Tensor, temperature: float, whole: Whole = _ALONE) -> Classes:
    """The classes of logits ``[O, C, I]``; of a part of them where ``whole`` knows the others."""
    acc = accumulator(student)
    s, t = student.to(acc), teacher.to(acc)
    absent = torch.isneginf(s) & torch.isneginf(t)  # a class that neither side has
    m_s, m_t = (whole.maximum(x.detach().amax(1, keepdim=True)) for x in (s, t))
    # Rows that lie far apart are measured from their own maxima: t - s would share the digits their distance leaves.
    apart = m_s.isfinite() & m_t.isfinite() & ((m_t - m_s).abs() / temperature > _APART)
    s, t = torch.where(apart, s - m_s, s), torch.where(apart, t - m_t, t)
    m_s, m_t = (torch.where(apart, 0.0, m) for m in (m_s, m_t))
    e_s, e_t = torch.exp((s - m_s) / temperature), torch.exp((t - m_t) / temperature)
    l_s, l_t = (whole.total(e.sum(1, keepdim=True)) for e in (e_s, e_t))
    q, p = e_s / l_s, e_t / l_t
    ratio = torch.where(absent, 0.0, t - s) / temperature
    # L_t - L_s. Around the offset c of the maxima it is c + log1p(sum q expm1(ratio - c)), which keeps its relative
    # precision when the two rows nearly agree; when they do not, the difference of the log-sum-exps is the better one.
    c = (m_t - m_s) / temperature
    c = torch.where(torch.isfinite(c), c, 0.0)
    x = whole.total((q * torch.expm1(ratio - c)).sum(1, keepdim=True))
    near = (x > -0.8) & (x < 1e6)
    log_partition_ratio = torch.where(
        near, c + torch.log1p(torch.where(near, x, 0.0)), (m_t - m_s) / temperature + torch.log(l_t / l_s)
    )
    d = ratio - log_partition_ratio
    p_less_q = torch.where(d > 0, -p * torch.expm1(-d.clamp(min=0)), q * torch.expm1(d.clamp(max=0)))
    return Classes(q, p, d, p_less_q)


def _excess(p: Tensor, w: Tensor, p_expm1_w: Tensor) -> Tensor:
    """``p (expm1(w) - w) >= 0``, given ``p expm1(w)``; its series where w is small, and no infinite w where p is 0."""
    small = w.abs() < (0.02 if w.dtype == torch.float64 else 0.25)
    v = torch.where(small, w, 0.0)
    series = 1 / 2 + v * (1 / 6 + v * (1 / 24 + v * (1 / 120 + v * (1 / 720 + v * (1 / 5040 + v / 40320)))))
    return torch.where(small, p * v * v * series, p_expm1_w - p * torch.where(p == 0, 0.0, w))


def _mixture(k: Classes, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """``log(m / q)``, ``log(m / p)`` and ``(p - q) / m`` of ``m = beta p + (1 - beta) q``, without the log of a
    probability.
    """
    up = k.d > 0
    a = torch.where(up, torch.expm1(-k.d.clamp(min=0)), torch.expm1(k.d.clamp(max=0)))
    y = torch.where(up, (1 - beta) * a, beta * a)
    c = torch.log1p(y)
    return torch.where(up, k.d + c, c), torch.where(up, c, c - k.d), torch.where(up, -a, a) / (1 + y)


def divergence_of_classes(k: Classes, divergence: int, beta: float) -> Tensor:
    """``[O, I]``: the sum of the classes' shares of a divergence, none of them negative."""
    if divergence == FORWARD:
        terms = _excess(k.p, -k.d, -k.p_less_q)
    elif divergence == REVERSE:
        terms = _excess(k.q, k.d, k.p_less_q)
    elif divergence == SKEW_FORWARD:
        terms = _excess(k.p, _mixture(k, beta)[1], -(1 - beta) * k.p_less_q)
    elif divergence == SKEW_REVERSE:
        terms = _excess(k.q, _mixture(k, beta)[0], beta * k.p_less_q)
    else:
        u, w, _ = _mixture(k, beta)
        terms = beta * _excess(k.p, w, -(1 - beta) * k.p_less_q) + (1 - beta) * _excess(k.q, u, beta * k.p_less_q)
    return terms.sum(1)  # [O, I]


def gradient_of_classes(k: Classes, divergence: int, beta: float, temperature: float, whole: Whole = _ALONE) -> Tensor:
    """``[O, C, I]``: the gradient of a divergence with respect to the student's logits."""
    if divergence == FORWARD:
        return -k.p_less_q / temperature
    if divergence == REVERSE:
        h, total = -k.d, _excess(k.q, k.d, k.p_less_q).sum(1, keepdim=True)
        factor = 1.0
    elif divergence == SKEW_FORWARD:
        x = (1 - beta) * _mixture(k, beta)[2]
        h, total = -x, beta * (k.p_less_q * x).sum(1, keepdim=True)
        factor = 1 - beta
    elif divergence == SKEW_REVERSE:
        u, _, x = _mixture(k, beta)
        x = (1 - beta) * beta * x
        h = x - u
        total = (_excess(k.q, u, beta * k.p_less_q) - beta * k.p_less_q * x).sum(1, keepdim=True)
        factor = 1.0
    else:
        u, *_ = _mixture(k, beta)
        h, total = -u, _excess(k.q, u, beta * k.p_less_q).sum(1, keepdim=True)
        factor = 1 - beta
    centred = torch.where(k.q == 0, 0.0, h) - whole.total(total)
    return factor * k.q * centred / temperature


def _row_coefficient(rows: Tensor | None, scale: float, student: Tensor) -> Tensor:
    """``[O, 1, I]``: what the row's term is multiplied by."""
    O, _, I = student.shape  # noqa: E741
    acc = accumulator(student)
    ones = torch.ones((), dtype=acc, device=student.device).expand(O, 1, I)
    return scale * (ones if rows is None else rows.reshape(O, 1, I))


def _labelled(
    student: Tensor, labels: Tensor, ce_rows: Tensor | None, ce_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits ``[O, C, I]`` of the rows that count, their labels ``[O, 1, I]`` safe to index with, and the
    coefficient: NaN where a label that counts is no class.
    """
    O, C, I = student.shape  # noqa: E741
    y, ce = labels.reshape(O, 1, I), _row_coefficient(ce_rows, ce_scale, student)
    outside = (y < 0) | (y >= C)
    ce = torch.where(outside & (ce != 0), torch.nan, ce)
    return torch.where(ce == 0, 0.0, student.to(ce.dtype)), torch.where(outside, 0, y), ce


def losses(
    student: Tensor,
    teacher: Tensor,
    kl_rows: Tensor | None,
    labels: Tensor | None,
    ce_rows: Tensor | None,
    temperature: float,
    divergence: int,
    beta: float,
    kl_scale: float,
    ce_scale: float,
) -> Tensor:
    """Row losses ``[O, I]``; arguments as in README.md section "Backends"."""
    kl = _row_coefficient(kl_rows, kl_scale, student)
    # A row that does not count is replaced before anything is computed, so that a NaN in it reaches nothing.
    k = classes_of(torch.where(kl == 0, 0.0, student), torch.where(kl == 0, 0.0, teacher), temperature)
    loss = kl.squeeze(1) * divergence_of_classes(k, divergence, beta)
    return loss if labels is None else loss + cross_entropies(student, labels, ce_rows, ce_scale)


def cross_entropies(student: Tensor, labels: Tensor, ce_rows: Tensor | None, ce_scale: float) -> Tensor:
    """Row losses ``[O, I]`` of the cross-entropy alone."""
    s, y, ce = _labelled(student, labels, ce_rows, ce_scale)
    return -(ce * F.log_softmax(s, 1).gather(1, y)).squeeze(1)


def gradient(
    student: Tensor,
    teacher: Tensor,
    kl_rows: Tensor | None,
    labels: Tensor | None,
    ce_rows: Tensor | None,
    temperature: float,
    divergence: int,
    beta: float,
    kl_scale: float,
    ce_scale: float,
) -> Tensor:
    """``[O, C, I]``, in the accumulation dtype: the gradient of ``losses(...).sum()`` with respect to the student."""
    kl = _row_coefficient(kl_rows, kl_scale, student)
    k = classes_of(torch.where(kl == 0, 0.0, student), torch.where(kl == 0, 0.0, teacher), temperature)
    grad = torch.where(kl == 0, 0.0, kl * gradient_of_classes(k, divergence, beta, temperature))
    if labels is not None:
        s, y, ce = _labelled(student, labels, ce_rows, ce_scale)
        one_hot = torch.zeros_like(s).scatter(1, y, 1.0)
        grad = grad + torch.where(ce == 0, 0.0, ce * (F.softmax(s, 1) - one_hot))
    return grad


def forward(
    student: Tensor,
    teacher: Tensor,
    kl_rows: Tensor | None,
    labels: Tensor | None,
    ce_rows: Tensor | None,
    temperature: float,
    divergence: int,
    beta: float,
    kl_scale: float,
    ce_scale: float,
    reduce: bool,
    grad: bool,
    *,
    ce_losses: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Row losses or their sum, and the gradient with respect to the student; README.md section "Backends"."""
    call = (student, teacher, kl_rows, labels, ce_rows, temperature, divergence, beta, kl_scale, ce_scale)
    if ce_losses is None or labels is None:
        loss = losses(*call)
    else:
        loss = losses(student, teacher, kl_rows, None, None, temperature, divergence, beta, kl_scale, 0.0)
        ce_losses.copy_(cross_entropies(student, labels, ce_rows, ce_scale).reshape(-1))
    out = torch.empty_like(student).copy_(gradient(*call)) if grad else None
    return (loss.sum() if reduce else loss.contiguous()), out


def scale_grad(grad: Tensor, upstream: Tensor) -> Tensor:
    """``grad * upstream`` in a new tensor, rounded once."""
    return (grad.to(upstream.dtype) * upstream).to(grad.dtype)
