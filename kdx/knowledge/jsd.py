"""Jensen-Shannon divergence: between forward and reverse KL, and bounded."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS
from kdx.knowledge.divergence import Divergence, Tail
from kdx.knowledge.response import class_axis
from kdx.ops import softmax_kl
from kdx.ranges import check_number

__all__ = ["JSD", "jsd"]


def jsd(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    beta: float = 0.5,
    class_dim: int | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """``T^2 JSD_beta`` of logits, a scalar; see :class:`JSD`.

    ``mask``, bool, of the logits' shape without the classes, says which elements count.
    """
    dim = class_axis(student, teacher, class_dim)
    return softmax_kl(
        student, teacher, temperature=temperature, divergence="jsd", beta=beta, mask=mask, dim=dim, backend=backend
    )


class JSD(Divergence):
    """Generalised Jensen-Shannon divergence between softened class probabilities.

    Loss: ``T^2 (beta KL(p || m) + (1 - beta) KL(q || m))`` with teacher ``p``, student ``q`` and
    ``m = beta p + (1 - beta) q``, summed over classes, averaged over the samples, tokens or pixels. At most
    ``T^2 log 2`` for beta 0.5, so one confident mistake cannot dominate a batch. Divided by ``beta`` it tends to the
    forward KL of soft targets for beta to 0, divided by ``1 - beta`` to the reverse KL for beta to 1. Gradients reach
    both sides; the conventions for ``-inf``, NaN and empty batches are those of :func:`kdx.ops.softmax_kl`.

    Args:
        temperature: T > 0; 1, as for language models.
        beta: weight of the teacher in the mixture, 0 < beta < 1.
        class_dim: axis of the classes, see :class:`kdx.knowledge.Response`; None: what the task says.
        void: whether elements with target -100 teach nothing; None: what the task says.
        vocabulary: n, to compare the first n classes of both sides, see :class:`kdx.knowledge.Response`; None: all.
        tail: of a teacher whose store keeps a few classes of each row, what becomes of the others, see
            :func:`kdx.ops.topk_kl`; ``"bucket"`` or ``"even"``.
        student: tap of the student's logits, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``, or of
            :class:`kdx.LinearLogits`.
        teacher: tap of the teacher's logits, the same shape.
        backend: kernel backend, ``"auto"`` chooses.

    Paper: Agarwal et al., On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes, ICLR 2024,
    https://arxiv.org/abs/2306.13649.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"logits": torch.tensor([[0.0, 0.0]])}), Captured({"logits": torch.tensor([[4.0, 0.0]])})
        >>> round(JSD()(s, t, None).item(), 4)
        0.1804
    """

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        beta: float = 0.5,
        class_dim: int | None = None,
        void: bool | None = None,
        vocabulary: int | None = None,
        tail: Tail = "bucket",
        student: str = LOGITS,
        teacher: str = LOGITS,
        backend: str = "auto",
    ) -> None:
        self.beta = check_number("beta", beta, above=0, below=1, instead="the ends are soft-targets and reverse-kl")
        options = {"class_dim": class_dim, "void": void, "vocabulary": vocabulary}
        taps = {"student": student, "teacher": teacher}
        super().__init__(temperature=temperature, tail=tail, backend=backend, **options, **taps)

    @property
    @override
    def numbers(self) -> dict[str, Any]:
        return {"divergence": "jsd", "beta": self.beta}

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, beta={self.beta}"
