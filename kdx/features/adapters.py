"""Transformations that make a student's feature comparable with a teacher's.

A feature is a map ``[N, C, H, W]``, tokens ``[N, L, D]`` (a transformer's hidden states, class token first) or a vector
``[N, D]``. :func:`match` brings two of them to one form and size without parameters; the builders below it make the
learnable part that then maps the student's channels to the teacher's. A component owns what they build, so that it is
trained and saved with the scheme and is no part of the exported student.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

__all__ = [
    "bottleneck",
    "channels",
    "full",
    "match",
    "match_maps",
    "project",
    "regressor",
    "to_map",
    "to_vector",
    "trained",
]

EXTRA_TOKENS = (0, 1, 2, 5)
"""Tokens a vision transformer may put before its grid: none, class, class and distillation, class and 4 registers."""


def match(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Brings two features to the teacher's form and to one size; channels stay as they are.

    - Two maps: the larger is average-pooled to the smaller, each axis by itself.
    - A vector and something else: the other is pooled to a vector (the class token if there is one, else the mean).
    - A student's tokens and a teacher's map: the grid of the tokens becomes a map, extra tokens are left out.
    - A student's map and a teacher's tokens: the map becomes tokens; the mean stands for each extra token.
    - Tokens of different number: the grids are pooled as maps; extra tokens go to extra tokens.

    Args:
        student: ``[N, C, H, W]``, ``[N, L, D]`` or ``[N, D]``.
        teacher: any of these forms.

    Returns:
        Both features, equal in shape except for the channels (dimension 1 of maps, the last one otherwise).

    Raises:
        ValueError: another number of dimensions, another batch size, or tokens that form no square grid.
    """
    for name, feature in (("student", student), ("teacher", teacher)):
        if feature.dim() not in (2, 3, 4):
            raise ValueError(
                f"the {name} feature has shape {list(feature.shape)}; expected a map [N, C, H, W], tokens [N, L, D] or "
                "a vector [N, D]: tap another layer, or flatten it in the model"
            )
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"student and teacher features of shape {list(student.shape)} and {list(teacher.shape)} have different "
            "batch sizes; tap layers that keep the batch first"
        )
    if student.dim() == 2 or teacher.dim() == 2:
        return to_vector(student), to_vector(teacher)
    if student.dim() == 3 and teacher.dim() == 3 and student.shape[1] == teacher.shape[1]:
        return student, teacher
    if teacher.dim() == 4:
        return _pool_both(to_map(student), teacher)
    return _match_tokens(student, teacher)


def match_maps(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both features as maps of one size; a vector is a map of one pixel, extra tokens are left out.

    Raises:
        ValueError: tokens that form no square grid.
    """
    return _pool_both(to_map(student), to_map(teacher))


def to_map(feature: Tensor) -> Tensor:
    """A map ``[N, C, H, W]`` of a map, of the grid of tokens ``[N, L, D]`` or of a vector (one pixel)."""
    if feature.dim() == 3:
        return _split(feature)[1]
    return feature if feature.dim() == 4 else feature[:, :, None, None]


def to_vector(feature: Tensor) -> Tensor:
    """A vector ``[N, D]``: the mean over a map, the class token or else the mean of tokens."""
    if feature.dim() == 4:
        return feature.mean((2, 3))
    if feature.dim() == 3:
        has_class_token = _extra_tokens(feature.shape[1]) not in (None, 0)
        return feature[:, 0] if has_class_token else feature.mean(1)
    return feature


def full(feature: Tensor) -> Tensor:
    """The feature in float32 (float64 stays): pooling in half precision costs more digits than a loss has."""
    return feature.to(torch.promote_types(feature.dtype, torch.float32))


def channels(feature: Tensor) -> int:
    """Channels of a map, or width of tokens and vectors."""
    return feature.shape[1] if feature.dim() == 4 else feature.shape[-1]


def project(student: Tensor, teacher: Tensor) -> nn.Module:
    """A learnable linear map from the student's channels to the teacher's, sized by one example of each.

    It takes what :func:`match` gives: a bias-free 1x1 convolution for maps, a bias-free linear layer otherwise, in the
    precision of :func:`trained`.

    Args:
        student: a feature as the student gives it.
        teacher: a feature as the teacher gives it.

    Raises:
        ValueError: see :func:`match`.
    """
    source, target = match(student, teacher)
    return trained(_layer(source, channels(source), channels(target)), student)


def regressor(student: Tensor, teacher: Tensor, hidden: int) -> nn.Module:
    """Three 1x1 convolutions (or linear layers) with ReLU between them, ``hidden`` channels inside.

    Takes what :func:`match` gives, as :func:`project` does.
    """
    source, target = match(student, teacher)
    layers = [
        _layer(source, channels(source), hidden),
        nn.ReLU(),
        _layer(source, hidden, hidden),
        nn.ReLU(),
        _layer(source, hidden, channels(target)),
    ]
    return trained(nn.Sequential(*layers), student)


def bottleneck(inputs: int, hidden: int, outputs: int, *, end: bool, kernel: int = 3) -> nn.Module:
    """1x1, 3x3 and 1x1 convolution of maps with BatchNorm and ReLU between them.

    Args:
        inputs: channels that come in.
        hidden: channels of the 3x3 convolution.
        outputs: channels that go out.
        end: BatchNorm and ReLU after the last convolution as well.
        kernel: side of the middle convolution, odd; 1 for maps of one pixel.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, hidden, 1, bias=False),
        BatchNorm(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, bias=False),
        BatchNorm(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, outputs, 1, bias=False),
    ]
    return nn.Sequential(*layers, *([BatchNorm(outputs), nn.ReLU()] if end else []))


def trained(part: nn.Module, like: Tensor) -> nn.Module:
    """Moves a new learnable part to a feature's device, in float32 (float64 for float64 features).

    Knowledge is computed in full precision, so its own parameters stay in it even beside a half-precision student.
    """
    return part.to(like.device, torch.promote_types(like.dtype, torch.float32))


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm that also takes a single value per channel (one sample, one pixel), by its running statistics.

    The stock module raises there, so a last batch of one sample would end a training run.
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


def _layer(source: Tensor, inputs: int, outputs: int) -> nn.Module:
    if source.dim() == 4:
        return nn.Conv2d(inputs, outputs, 1, bias=False)
    return nn.Linear(inputs, outputs, bias=False)


def _pool_both(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return _pool(student, size), _pool(teacher, size)


def _pool(feature: Tensor, size: tuple[int, int]) -> Tensor:
    return feature if feature.shape[2:] == size else F.adaptive_avg_pool2d(feature, size)


def _extra_tokens(length: int) -> int | None:
    """Number of tokens before a square grid, None if there is no such grid."""
    grids = (extra for extra in EXTRA_TOKENS if length > extra and math.isqrt(length - extra) ** 2 == length - extra)
    return next(grids, None)


def _split(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Extra tokens ``[N, E, D]`` and the grid as a map ``[N, D, S, S]``."""
    extra = _extra_tokens(tokens.shape[1])
    if extra is None:
        raise ValueError(
            f"tokens of shape {list(tokens.shape)} form no square grid after {EXTRA_TOKENS[:-1]} or {EXTRA_TOKENS[-1]} "
            "extra tokens, so they cannot be laid on a map; tap layers with the same number of tokens"
        )
    side = math.isqrt(tokens.shape[1] - extra)
    return tokens[:, :extra], tokens[:, extra:].transpose(1, 2).reshape(len(tokens), -1, side, side)


def _match_tokens(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Student map or tokens and teacher tokens -> tokens of one number."""
    teacher_extra, teacher_grid = _split(teacher)
    student_extra, student_grid = (None, student) if student.dim() == 4 else _split(student)
    student_grid, teacher_grid = _pool_both(student_grid, teacher_grid)
    student_tokens, teacher_tokens = student_grid.flatten(2).transpose(1, 2), teacher_grid.flatten(2).transpose(1, 2)
    kept = student_tokens[:, :0] if student_extra is None else student_extra[:, : teacher_extra.shape[1]]
    missing = teacher_extra.shape[1] - kept.shape[1]
    mean = student_tokens.mean(1, keepdim=True).expand(-1, missing, -1)
    return torch.cat([kept, mean, student_tokens], 1), torch.cat([teacher_extra, teacher_tokens], 1)
