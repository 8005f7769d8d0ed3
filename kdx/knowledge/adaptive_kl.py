"""Adaptive KL: forward and reverse KL, weighted row by row by where student and teacher differ."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS
from kdx.features.operands import Variant, check_choice
from kdx.knowledge.response import Outputs, Response, class_axis
from kdx.knowledge.token_surprisals import row_chunks
from kdx.ops import softmax_kl
from kdx.ranges import check_number
from kdx.responses import class_rows

__all__ = ["AdaptiveKL", "adaptive_kl"]


def adaptive_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    head: float = 0.5,
    variant: Variant = "code",
    class_dim: int | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """``T^2 (w_h KL(p || q) + w_t KL(q || p))`` of logits, a scalar; see :class:`AdaptiveKL`.

    ``mask``, bool, of the logits' shape without the classes, says which elements count.
    """
    dim = class_axis(student, teacher, class_dim)
    check_choice("variant", variant, ("paper", "code"))
    with torch.no_grad():
        share = _share_of_head(class_rows(student, dim), class_rows(teacher, dim), temperature, head, variant, mask)
        shape = [*student.shape[:dim], *student.shape[dim + 1 :]]
    parts = [
        softmax_kl(
            student,
            teacher,
            temperature=temperature,
            divergence=divergence,
            weight=weight.reshape(shape),
            mask=mask,
            dim=dim,
            backend=backend,
        )
        for divergence, weight in (("forward", share), ("reverse", 1 - share))
    ]
    return parts[0] + parts[1]


def _share_of_head(
    student: Tensor, teacher: Tensor, temperature: float, head: float, variant: Variant, mask: Tensor | None
) -> Tensor:
    """How much of the gap of rows ``[R, C]`` lies in the teacher's head, ``[R]`` in [0, 1]; 1/2 where there is none."""
    wide = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    found = torch.full((len(student),), 0.5, dtype=wide, device=student.device)
    rows = torch.arange(len(student), device=student.device)
    if mask is not None and not torch.compiler.is_compiling():
        rows = rows[mask.flatten()]
    for at in row_chunks(rows, 6 * student.shape[1], wide.itemsize):
        p, order = (teacher[at].to(wide) / temperature).softmax(1).sort(1, descending=True)
        q = (student[at].to(wide) / temperature).softmax(1).gather(1, order)
        gap, reached = (p - q).abs(), p.cumsum(1)
        inside = reached - p < head if variant == "paper" else reached <= head
        inside[:, 0] = True
        whole = gap.sum(1)
        found[at] = torch.where(whole > 0, (gap * inside).sum(1) / whole, 0.5)
    return found


class AdaptiveKL(Response):
    """Forward and reverse KL together, weighted by whether the student differs in the teacher's head or in its tail.

    Loss: ``T^2 (w_h KL(p || q) + w_t KL(q || p))`` with teacher p and student q, summed over classes, averaged over the
    samples, tokens or pixels. The head are the teacher's likeliest classes up to the probability ``head``, the tail the
    others; ``w_h = g_h / (g_h + g_t)``, where ``g`` is the sum of ``|p - q|`` over either, and ``w_t = 1 - w_h``.
    Forward KL fits the head first and reverse KL the tail. The weights get no gradient, as in the authors' code; where
    both sides agree they are 1/2. Gradients of the divergences reach both sides. Each row's classes are sorted, some
    rows at a time.

    Args:
        temperature: T > 0; 1, as for language models.
        head: mu of the paper, in (0, 1).
        variant: what belongs to the head: ``"paper"``: the fewest classes that reach ``head`` together; ``"code"``: the
            likeliest class, and the next ones as long as they stay within it.
        class_dim: axis of the classes, see :class:`kdx.knowledge.Response`; None: what the task says.
        void: whether elements with target -100 teach nothing; None: what the task says.
        vocabulary: n, to compare the first n classes of both sides, see :class:`kdx.knowledge.Response`; None: all.
        student: tap of the student's logits, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``.
        teacher: tap of the teacher's logits, the same shape.
        backend: kernel backend of both divergences, ``"auto"`` chooses.

    Paper: Wu et al., Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language Models, COLING
    2025, https://arxiv.org/abs/2404.02657; code: https://github.com/wutaiqiang/LLM_KD_AKL.

    Example:
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"logits": torch.tensor([[0.0, 0.0]])}), Captured({"logits": torch.tensor([[4.0, 0.0]])})
        >>> round(AdaptiveKL()(s, t, None).item(), 4)
        0.964
    """

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        head: float = 0.5,
        variant: Variant = "code",
        class_dim: int | None = None,
        void: bool | None = None,
        vocabulary: int | None = None,
        student: str = LOGITS,
        teacher: str = LOGITS,
        backend: str = "auto",
    ) -> None:
        super().__init__(class_dim=class_dim, void=void, vocabulary=vocabulary, student=student, teacher=teacher)
        self.temperature = check_number("temperature", temperature, above=0)
        self.head = check_number("head", head, above=0, below=1)
        check_choice("variant", variant, ("paper", "code"))
        self.variant = variant
        self.backend = backend

    @override
    def compare(self, outputs: Outputs) -> Tensor:
        return adaptive_kl(
            outputs.student,
            outputs.teacher,
            temperature=self.temperature,
            head=self.head,
            variant=self.variant,
            class_dim=outputs.dim,
            mask=outputs.mask,
            backend=self.backend,
        )

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, head={self.head}, variant={self.variant!r}"
