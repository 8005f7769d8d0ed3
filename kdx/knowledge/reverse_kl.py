"""Reverse KL: the student keeps to the classes that the teacher finds likely."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS
from kdx.knowledge.divergence import Divergence, Tail
from kdx.knowledge.response import class_axis
from kdx.ops import softmax_kl

__all__ = ["ReverseKL", "reverse_kl"]


def reverse_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    class_dim: int | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """``T^2 KL(student || teacher)`` of logits, a scalar; see :class:`ReverseKL`.

    ``mask``, bool, of the logits' shape without the classes, says which elements count.
    """
    dim = class_axis(student, teacher, class_dim)
    return softmax_kl(
        student, teacher, temperature=temperature, divergence="reverse", mask=mask, dim=dim, backend=backend
    )


class ReverseKL(Divergence):
    """KL divergence from the student's softened probabilities to the teacher's.

    Loss: ``T^2 KL(softmax(z_s / T) || softmax(z_t / T))``, summed over classes, averaged over the
    samples, tokens or pixels. It punishes
    mass where the teacher has none, so a student too small for every mode of the teacher keeps to some of them, where
    the forward KL of soft targets spreads over all. Gradients reach both sides; the conventions for ``-inf``, NaN and
    empty batches are those of :func:`kdx.ops.softmax_kl` (a class that the teacher rules out with ``-inf`` and the
    student does not gives inf).

    Args:
        temperature: T > 0; 1, as for language models.
        class_dim: axis of the classes, see :class:`kdx.knowledge.Response`; None: what the task says.
        void: whether elements with target -100 teach nothing; None: what the task says.
        vocabulary: n, to compare the first n classes of both sides, see :class:`kdx.knowledge.Response`; None: all.
        tail: of a teacher whose store keeps a few classes of each row, what becomes of the others, see
            :func:`kdx.ops.topk_kl`; ``"bucket"`` or ``"even"``.
        student: tap of the student's logits, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``, or of
            :class:`kdx.LinearLogits`.
        teacher: tap of the teacher's logits, the same shape.
        backend: kernel backend, ``"auto"`` chooses.

    Paper: Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, ICLR 2024,
    https://arxiv.org/abs/2306.08543, which takes it over whole sequences; per prediction, as here, it is one end of
    Agarwal et al., ICLR 2024, https://arxiv.org/abs/2306.13649.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"logits": torch.tensor([[0.0, 0.0]])}), Captured({"logits": torch.tensor([[4.0, 0.0]])})
        >>> round(ReverseKL()(s, t, None).item(), 4)
        1.325
    """

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        class_dim: int | None = None,
        void: bool | None = None,
        vocabulary: int | None = None,
        tail: Tail = "bucket",
        student: str = LOGITS,
        teacher: str = LOGITS,
        backend: str = "auto",
    ) -> None:
        options = {"class_dim": class_dim, "void": void, "vocabulary": vocabulary}
        taps = {"student": student, "teacher": teacher}
        super().__init__(temperature=temperature, tail=tail, backend=backend, **options, **taps)

    @property
    @override
    def numbers(self) -> dict[str, Any]:
        return {"divergence": "reverse"}
