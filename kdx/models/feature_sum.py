"""Two networks whose last feature maps are added up before one classifier: a student and its assistant."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.capture import Taps, unwrap
from kdx.models.shape import check_shape
from kdx.modes import evaluating
from kdx.ref import Ref, RefLike
from kdx.registry import default_plugins

__all__ = ["FeatureSum"]


class FeatureSum(nn.Module):
    """``classifier(mean over places of r_s(F_s) + r_a(F_a))``, one ordinary model.

    ``F_s`` and ``F_a`` are the maps of one layer of student and assistant, ``r_s`` and ``r_a`` 1x1 convolutions to the
    same number of channels, that of a teacher's map. Taps: those of both under ``student.`` and ``assistant.``, the
    parts of the sum at ``student_map`` and ``assistant_map``, and ``logits``, ``[N, num_classes]``.

    Args:
        student: a model, as ``Ref(name, option=value)`` or as a recipe writes it.
        assistant: another one, with a layer of that name and of the same height and width.
        layer: tap of the map in both.
        channels: of the sum.
        classifier: name of the classifier of both, which is replaced by nothing, so that it costs nothing; None leaves
            what follows the layer as it is, unused.
        num_classes: number of logits.
        input_shape: channels, height and width of an image.

    Raises:
        ValueError: a model has no name, or layers that give no maps of one size.
        CaptureError: a layer that does not exist.

    Example:
        >>> small = Ref("convnet", width=4, stages=2)
        >>> pair = FeatureSum(small, Ref("convnet", width=2, stages=2), "stage2", channels=16)
        >>> pair(torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        student: RefLike,
        assistant: RefLike,
        layer: str,
        *,
        channels: int,
        classifier: str | None = "fc",
        num_classes: int = 10,
        input_shape: tuple[int, int, int] = (1, 28, 28),
    ) -> None:
        check_shape(input_shape, num_classes)
        super().__init__()
        shape = {"num_classes": num_classes, "input_shape": input_shape}
        self.student: nn.Module = default_plugins().make("model", Ref.of(student, "student"), **shape)
        self.assistant: nn.Module = default_plugins().make("model", Ref.of(assistant, "assistant"), **shape)
        for model in self._models:
            if classifier is not None:
                Taps(model, (classifier,))  # a wrong name fails here and lists the near ones
                unwrap(model).set_submodule(classifier, nn.Identity())
        self.layer = layer
        self.taps = tuple(Taps(model, (layer,)) for model in self._models)
        s, a = (self._map(model, taps, input_shape) for model, taps in zip(self._models, self.taps, strict=True))
        if s.shape[2:] != a.shape[2:]:
            raise ValueError(
                f"layer {layer!r} gives {list(s.shape)} in the student and {list(a.shape)} in the assistant, maps of "
                "unequal height and width; take models that differ in width alone"
            )
        self.student_map = nn.Conv2d(s.shape[1], channels, 1, bias=False)
        self.assistant_map = nn.Conv2d(a.shape[1], channels, 1, bias=False)
        self.classifier = nn.Linear(channels, num_classes)

    @property
    def _models(self) -> tuple[nn.Module, nn.Module]:
        return self.student, self.assistant

    def _map(self, model: nn.Module, taps: Taps, input_shape: tuple[int, int, int]) -> Tensor:
        """The layer's map of one image of zeros."""
        with evaluating(model), torch.no_grad():
            found: Tensor = taps(torch.zeros(1, *input_shape))[self.layer]
        if found.dim() != 4:
            raise ValueError(
                f"layer {self.layer!r} gives {list(found.shape)}, and a map [N, C, H, W] was expected; tap the last "
                "layer before the pooling"
            )
        return found

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, C, H, W]``."""
        s, a = (taps(x)[self.layer] for taps in self.taps)
        logits: Tensor = self.classifier((self.student_map(s) + self.assistant_map(a)).flatten(2).mean(2))
        return logits
