"""Skewed KL: forward or reverse KL to a mixture with the other side, so that no ratio of probabilities is large."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS
from kdx.features.operands import check_choice
from kdx.knowledge.divergence import Divergence, Tail, check_tail
from kdx.knowledge.response import class_axis
from kdx.ops import softmax_kl
from kdx.ranges import check_number

__all__ = ["SkewKL", "skew_kl"]

Direction = Literal["forward", "reverse"]


def skew_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    skew: float = 0.1,
    direction: Direction = "forward",
    class_dim: int | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """``T^2 KL(p || s p + (1 - s) q)`` of logits, a scalar, or the same with the sides exchanged; see :class:`SkewKL`.

    ``mask``, bool, of the logits' shape without the classes, says which elements count.
    """
    dim = class_axis(student, teacher, class_dim)
    check_choice("direction", direction, ("forward", "reverse"))
    return softmax_kl(
        student, teacher, temperature=temperature, divergence=direction, skew=skew, mask=mask, dim=dim, backend=backend
    )


class SkewKL(Divergence):
    """KL divergence to a mixture of both sides, which bounds its gradient where the student finds a class unlikely.

    Loss: ``T^2 KL(p || s p + (1 - s) q)`` forward, ``T^2 KL(q || s q + (1 - s) p)`` reverse, with teacher p, student q
    and skew s, summed over classes, averaged over the samples, tokens or pixels; at most ``-T^2 log s``. With s = 0
    they are the plain KLs. Gradients reach both sides; the conventions for ``-inf``, NaN and empty batches are
    those of :func:`kdx.ops.softmax_kl`. The paper joins it with text that the student writes and a buffer that replays
    it: the scheme ``on-policy`` with ``every`` and ``buffer``.

    Args:
        temperature: T > 0; 1, as for language models.
        skew: s, 0 <= s < 1.
        direction: ``"forward"`` or ``"reverse"``.
        class_dim: axis of the classes, see :class:`kdx.knowledge.Response`; None: what the task says.
        void: whether elements with target -100 teach nothing; None: what the task says.
        vocabulary: n, to compare the first n classes of both sides, see :class:`kdx.knowledge.Response`; None: all.
        tail: of a teacher whose store keeps a few classes of each row, what becomes of the others, see
            :func:`kdx.ops.topk_kl`; ``"bucket"`` or ``"even"``.
        student: tap of the student's logits, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``, or of
            :class:`kdx.LinearLogits`.
        teacher: tap of the teacher's logits, the same shape.
        backend: kernel backend, ``"auto"`` chooses.

    Paper: Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models, ICML 2024,
    https://arxiv.org/abs/2402.03898; code: https://github.com/jongwooko/distillm.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"logits": torch.tensor([[0.0, 0.0]])}), Captured({"logits": torch.tensor([[4.0, 0.0]])})
        >>> round(SkewKL()(s, t, None).item(), 4), round(SkewKL(direction="reverse")(s, t, None).item(), 4)
        (0.5145, 0.6987)
    """

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        skew: float = 0.1,
        direction: Direction = "forward",
        class_dim: int | None = None,
        void: bool | None = None,
        vocabulary: int | None = None,
        tail: Tail = "bucket",
        student: str = LOGITS,
        teacher: str = LOGITS,
        backend: str = "auto",
    ) -> None:
        self.skew = check_number("skew", skew, least=0, below=1)
        check_choice("direction", direction, ("forward", "reverse"))
        self.direction: Direction = direction
        check_tail(tail, "skewed")
        options = {"class_dim": class_dim, "void": void, "vocabulary": vocabulary}
        taps = {"student": student, "teacher": teacher}
        super().__init__(temperature=temperature, tail=tail, backend=backend, **options, **taps)

    @property
    @override
    def numbers(self) -> dict[str, Any]:
        return {"divergence": self.direction, "skew": self.skew}

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, skew={self.skew}, direction={self.direction!r}"
