"""Two networks whose outputs are added up: a student and the assistant that learned what it misses."""

from __future__ import annotations

from torch import Tensor, nn

from kdx.models.shape import check_shape
from kdx.ref import Ref, RefLike
from kdx.registry import default_plugins

__all__ = ["ResidualSum"]


class ResidualSum(nn.Module):
    """``student(x) + assistant(x)``, one ordinary model.

    Taps: those of both, under ``student.`` and ``assistant.``; ``logits`` is the sum ``[N, num_classes]``.

    Args:
        student: a model, as ``Ref(name, option=value)`` or as a recipe writes it.
        assistant: another one.
        num_classes: number of logits of both.
        input_shape: channels, height and width of an image.

    Raises:
        ValueError: a model has no name.

    Example:
        >>> import torch
        >>> both = ResidualSum(Ref("mlp", hidden=[8]), Ref("mlp", hidden=[4]))
        >>> x = torch.randn(2, 1, 28, 28)
        >>> torch.equal(both(x), both.student(x) + both.assistant(x))
        True
    """

    def __init__(
        self,
        student: RefLike,
        assistant: RefLike,
        *,
        num_classes: int = 10,
        input_shape: tuple[int, int, int] = (1, 28, 28),
    ) -> None:
        check_shape(input_shape, num_classes)
        super().__init__()
        shape = {"num_classes": num_classes, "input_shape": input_shape}
        self.student: nn.Module = default_plugins().make("model", Ref.of(student, "student"), **shape)
        self.assistant: nn.Module = default_plugins().make("model", Ref.of(assistant, "assistant"), **shape)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, C, H, W]``."""
        total: Tensor = self.student(x) + self.assistant(x)
        return total
