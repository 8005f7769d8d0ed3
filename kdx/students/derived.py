"""The model component ``derived``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from kdx.errors import StudentError

__all__ = ["derived"]


def derived(
    config: Path | dict[str, Any] | None = None,
    *,
    how: str | dict[str, Any] | None = None,
    params: str | float | None = None,
    flops: str | float | None = None,
    latency: str | float | None = None,
    inherit: bool = True,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
) -> nn.Module:
    """A student derived from a teacher: built from its description, or, in a recipe, from the recipe's own teacher.

    With ``config`` the teacher is not needed; ``student.weights`` in a recipe starts from the weights that
    ``kdx student make`` wrote beside it. With ``how`` an experiment derives the student when its teacher is trained,
    as :func:`kdx.students.derive` does; alone and distilled it starts from the same weights.

    Args:
        config: the file that ``kdx student make`` wrote, or what is in it.
        how: a derivation by name, as ``width``, or with options, as ``{name: width, importance: l2}``.
        params: the most parameters, as ``25%``, ``0.25`` or ``60k``.
        flops: the most operations per sample, likewise.
        latency: the longest time of one sample, as ``50%`` or ``2.5ms``; measured, so not the same on every run.
        inherit: whether it starts from the teacher's weights; else they are drawn anew.
        num_classes: number of outputs, that of the config by default.
        input_shape: channels, height and width of an image, that of the config by default.

    Raises:
        StudentError: the config is wrong or does not fit the shape, or ``how`` is given where there is no teacher.

    Example:
        >>> edit = {"how": "depthwise", "layers": ["stage2.conv1"]}
        >>> derived({"base": {"name": "convnet", "width": 4}, "edits": [edit]}).stage2.conv1
        Sequential(
          (depthwise): Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=4, bias=False)
          (pointwise): Conv2d(4, 8, kernel_size=(1, 1), stride=(1, 1), bias=False)
        )
    """
    if config is None or how is not None:
        raise StudentError(
            "the model 'derived' is built from config=, what `kdx student make` wrote; how= derives it from the "
            "trained teacher, which only the stages of a recipe with a teacher can do, and leaves no place for config="
        )
    import torch

    from kdx.students.config import build  # every plan looks at this module, and few build a derived student
    from kdx.students.contract import Contract

    shape: dict[str, Any] = {"num_classes": num_classes, "input_shape": input_shape}
    model = build(config, **{name: value for name, value in shape.items() if value is not None})
    if input_shape is not None and num_classes is not None:
        example = torch.zeros(2, *input_shape)
        Contract(example, (((2, num_classes), example.dtype),)).check(model)
    return model
