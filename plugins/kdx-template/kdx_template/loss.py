"""Transformed teacher matching: only the teacher is softened."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from kdx import ops
from kdx.knowledge import Outputs, Response

__all__ = ["TransformedTeacher", "transformed_teacher"]


def transformed_teacher(
    student: Tensor, teacher: Tensor, *, temperature: float = 4.0, dim: int = -1, mask: Tensor | None = None
) -> Tensor:
    """``KL(softmax(z_t / T) || softmax(z_s))``, mean over all but the classes; no ``T^2``.

    Args:
        student: logits, any float dtype; gets the gradient.
        teacher: logits of the same shape.
        temperature: T > 0, of the teacher alone.
        dim: axis of the classes.
        mask: bool, of the logits' shape without the classes: which elements count; None: all.

    Returns:
        A scalar, 0 for an empty batch. Rows with infinite or NaN logits behave as in :func:`kdx.ops.softmax_kl`.

    Raises:
        ValueError: ``temperature`` is not positive, or the shapes differ.

    Example:
        >>> import torch
        >>> z = torch.tensor([[2.0, 0.0]])
        >>> transformed_teacher(z / 4, z, temperature=4.0).item()
        0.0
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return ops.softmax_kl(student, teacher / temperature, temperature=1.0, dim=dim, mask=mask)


class TransformedTeacher(Response):
    """Transformed teacher matching (TTM): the student's own probabilities follow the softened teacher.

    Loss: ``KL(softmax(z_t / T) || softmax(z_s))``, summed over classes, averaged over the batch; no ``T^2``, since the
    student's temperature is 1. Gradients reach the student. Compared with soft targets this adds a Renyi entropy of the
    student, which keeps it from being too sure.

    Args:
        temperature: T > 0; the paper takes values near 4 on CIFAR-100.
        student: tap of the student's logits ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, ...]``.
        teacher: tap of the teacher's logits, the same shape.

    Raises:
        ValueError: ``temperature`` is not positive.

    Paper: Zheng, Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024,
    https://arxiv.org/abs/2402.11148.

    Example:
        >>> import torch
        >>> from kdx import Batch, Captured
        >>> component = TransformedTeacher(temperature=2.0)
        >>> s, t = Captured({"logits": torch.zeros(3, 5)}), Captured({"logits": torch.zeros(3, 5)})
        >>> component(s, t, Batch(None)).item()
        0.0
    """

    def __init__(self, temperature: float = 4.0, *, student: str = "logits", teacher: str = "logits") -> None:
        super().__init__(student=student, teacher=teacher)
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature

    @override
    def compare(self, outputs: Outputs) -> Tensor:
        return transformed_teacher(
            outputs.student, outputs.teacher, temperature=self.temperature, dim=outputs.dim, mask=outputs.mask
        )
