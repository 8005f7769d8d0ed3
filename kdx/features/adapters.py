"""Transformations that make a student's feature comparable with a teacher's.

A feature is a tensor with its layout (:class:`kdx.features.Feature`): a vector, tokens, or a map with one to three axes
of places. A plain tensor is laid out as documented: ``[N, C]``, tokens ``[N, L, C]``, ``[N, C, H, W]``,
``[N, C, D, H, W]``. :func:`match` brings two features to one form and size without parameters, channels first; the
builders below it make the learnable part that then maps the student's channels to the teacher's. A component owns what
they build, so that it is trained and saved with the scheme and is no part of the exported student.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from kdx.features.feature import Feature

__all__ = [
    "BatchNorm",
    "bottleneck",
    "channels",
    "convolution",
    "full",
    "match",
    "match_maps",
    "pool",
    "project",
    "regressor",
    "to_map",
    "to_maps",
    "to_vector",
    "trained",
]


def match(student: Feature | Tensor, teacher: Feature | Tensor) -> tuple[Tensor, Tensor]:
    """Brings two features to the teacher's form and to one size, channels first; channels stay as they are.

    - Two maps: the larger is average-pooled to the smaller, each axis by itself.
    - A vector and something else: the other is pooled to a vector (:func:`to_vector`).
    - Tokens of the same number: token by token, ``[N, C, L]``; no grid is needed.
    - A student's tokens and a teacher's map: the grid of the tokens becomes a map, tokens before it are left out.
    - A student's map and a teacher's tokens: the map becomes tokens; the mean stands for each token before the grid.
    - Tokens of different number: the grids are pooled as maps; tokens before the grid go to their like.

    Args:
        student: a feature, or a tensor laid out as documented.
        teacher: likewise.

    Returns:
        Both as ``[N, C, ...]``, equal in shape except for the channels.

    Raises:
        ValueError: another batch size, maps with different numbers of axes, or a layout, a grid or a class token that
            is needed and that nobody said.
    """
    s, t = Feature.of(student, "the student's feature"), Feature.of(teacher, "the teacher's feature")
    _check_rows(s, t)
    if s.is_vector or t.is_vector:
        return s.vector(), t.vector()
    if s.is_tokens and t.is_tokens and _one_to_one(s, t):
        return s.channels_first(), t.channels_first()
    if not t.is_tokens or (not s.is_tokens and t.layout.grid is None):
        return match_maps(s, t)
    return _match_tokens(s, t)


def match_maps(student: Feature | Tensor, teacher: Feature | Tensor) -> tuple[Tensor, Tensor]:
    """Both features as maps of one size, ``[N, C, ...]``; see :func:`to_maps`.

    Raises:
        ValueError: as for :func:`to_maps`, or another batch size.
    """
    s, t = Feature.of(student, "the student's feature"), Feature.of(teacher, "the teacher's feature")
    _check_rows(s, t)
    source, target = to_maps([s, t])
    return _pool_both(source, target)


def to_maps(features: Sequence[Feature | Tensor]) -> list[Tensor]:
    """Features as maps ``[N, C, ...]`` with one number of axes; sizes stay as they are.

    A vector is a map of one place, tokens are laid on their grid, those before it are left out. Tokens whose grid
    nobody said are a row ``[N, C, L]``, which can be compared with rows of the same length and with vectors alone.

    Raises:
        ValueError: maps with different numbers of axes, or tokens whose grid is needed and that nobody said.
    """
    given = [Feature.of(feature) for feature in features]
    placed = [feature for feature in given if not feature.is_vector]
    loose = [feature for feature in placed if feature.is_tokens and feature.layout.grid is None]
    if loose:
        rows = [feature.patches() if feature.is_tokens else feature.channels_first() for feature in placed]
        if len({row.shape[2:] for row in rows}) != 1:
            raise ValueError(loose[0].needs_grid())
        unsaid = next((feature for feature in loose if feature.extra is None), None)
        if unsaid is not None and (len(placed) < len(given) or any(f.is_tokens and f.extra for f in placed)):
            raise ValueError(unsaid.needs_grid())  # which of its tokens count has to be known
        axes = 1
    else:
        numbers = {feature.map().dim() - 2 for feature in placed} or {2}
        if len(numbers) > 1:
            shapes = "; ".join(f"{feature.where} has shape {list(feature.tensor.shape)}" for feature in placed)
            raise ValueError(
                f"maps with different numbers of axes cannot be compared: {shapes}; tap layers of one kind, or pooled "
                "vectors"
            )
        axes = numbers.pop()
    maps = []
    for feature in given:
        if feature.is_vector:
            maps.append(feature.tensor[(..., *[None] * axes)])
        else:
            maps.append(feature.patches() if feature.is_tokens and loose else feature.map())
    return [one.flatten(2) for one in maps] if loose else maps


def to_map(feature: Feature | Tensor) -> Tensor:
    """A map ``[N, C, ...]`` of a map, of the grid of tokens or of a vector (one pixel, ``[N, C, 1, 1]``).

    Raises:
        ValueError: tokens whose grid nobody said.
    """
    given = Feature.of(feature)
    return given.tensor[:, :, None, None] if given.is_vector else given.map()


def to_vector(feature: Feature | Tensor) -> Tensor:
    """A vector ``[N, C]``: the mean over a map; of tokens the class token, or the mean where there is none.

    Raises:
        ValueError: tokens of which nobody said whether the first one is a class token.
    """
    return Feature.of(feature).vector()


def full(feature: Tensor) -> Tensor:
    """The feature in float32 (float64 stays): pooling in half precision costs more digits than a loss has."""
    return feature.to(torch.promote_types(feature.dtype, torch.float32))


def channels(feature: Feature | Tensor) -> int:
    """Channels of a map, or width of tokens and vectors."""
    return Feature.of(feature).channels


def pool(feature: Tensor, size: Sequence[int], *, largest: bool = False) -> Tensor:
    """A map ``[N, C, ...]`` pooled to a size by the mean, or by the maximum; itself where it has that size."""
    size = tuple(size)
    if tuple(feature.shape[2:]) == size:
        return feature
    by_axes: dict[int, tuple[Any, Any]] = {
        1: (F.adaptive_avg_pool1d, F.adaptive_max_pool1d),
        2: (F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
        3: (F.adaptive_avg_pool3d, F.adaptive_max_pool3d),
    }
    take: Callable[[Tensor, tuple[int, ...]], Tensor] = by_axes[len(size)][largest]
    return take(feature, size)


def convolution(
    inputs: int,
    outputs: int,
    axes: int,
    kernel: int | Sequence[int] = 1,
    *,
    stride: int | Sequence[int] = 1,
    padding: int = 0,
    groups: int = 1,
    bias: bool = False,
) -> nn.Module:
    """A convolution over a number of axes; for vectors, which have none, a linear layer.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        axes: of places, 0 to 3.
        kernel: its sides.
        stride: of the convolution.
        padding: of the convolution.
        groups: of channels that are convolved apart; not for vectors.
        bias: whether it has a bias.
    """
    if axes == 0:
        return nn.Linear(inputs, outputs, bias=bias)
    kinds: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    sides = (
        (kernel if isinstance(kernel, int) else tuple(kernel)),
        (stride if isinstance(stride, int) else tuple(stride)),
    )
    return kinds[axes](inputs, outputs, sides[0], stride=sides[1], padding=padding, groups=groups, bias=bias)


def project(student: Feature | Tensor, teacher: Feature | Tensor) -> nn.Module:
    """A learnable linear map from the student's channels to the teacher's, sized by one example of each.

    It takes what :func:`match` gives: a bias-free convolution with kernel 1 (Conv1d for tokens and ``[N, C, L]``,
    Conv2d for maps, Conv3d for video), a bias-free linear layer for vectors, in the precision of :func:`trained`.

    Args:
        student: a feature as the student gives it.
        teacher: a feature as the teacher gives it.

    Raises:
        ValueError: see :func:`match`.
    """
    source, target = match(student, teacher)
    return trained(convolution(source.shape[1], target.shape[1], source.dim() - 2), source)


def regressor(student: Feature | Tensor, teacher: Feature | Tensor, hidden: int) -> nn.Module:
    """Three convolutions with kernel 1 (or linear layers) with ReLU between them, ``hidden`` channels inside.

    Takes what :func:`match` gives, as :func:`project` does.
    """
    source, target = match(student, teacher)
    axes = source.dim() - 2
    layers = [
        convolution(source.shape[1], hidden, axes),
        nn.ReLU(),
        convolution(hidden, hidden, axes),
        nn.ReLU(),
        convolution(hidden, target.shape[1], axes),
    ]
    return trained(nn.Sequential(*layers), source)


def bottleneck(inputs: int, hidden: int, outputs: int, *, end: bool, kernel: int = 3, axes: int = 2) -> nn.Module:
    """1x1, 3x3 and 1x1 convolution of maps with BatchNorm and ReLU between them.

    Args:
        inputs: channels that come in.
        hidden: channels of the 3x3 convolution.
        outputs: channels that go out.
        end: BatchNorm and ReLU after the last convolution as well.
        kernel: side of the middle convolution, odd; 1 for maps of one pixel.
        axes: number of axes of the maps, 1 to 3.
    """
    layers: list[nn.Module] = [
        convolution(inputs, hidden, axes),
        BatchNorm(hidden),
        nn.ReLU(),
        convolution(hidden, hidden, axes, kernel, padding=kernel // 2),
        BatchNorm(hidden),
        nn.ReLU(),
        convolution(hidden, outputs, axes),
    ]
    return nn.Sequential(*layers, *([BatchNorm(outputs), nn.ReLU()] if end else []))


def trained(part: nn.Module, like: Tensor) -> nn.Module:
    """Moves a new learnable part to a feature's device, in float32 (float64 for float64 features).

    Knowledge is computed in full precision, so its own parameters stay in it even beside a half-precision student.
    """
    return part.to(like.device, torch.promote_types(like.dtype, torch.float32))


class BatchNorm(_BatchNorm):
    """BatchNorm of maps ``[N, C, ...]`` with any number of axes, which also takes a single value per channel.

    One sample of one pixel is normalised by the running statistics. The stock modules raise there, so a last batch of
    one sample would end a training run.
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)

    @override
    def _check_input_dim(self, input: Tensor) -> None:
        """Takes any number of axes."""


def _check_rows(student: Feature, teacher: Feature) -> None:
    s, t = student.batch_first(), teacher.batch_first()
    if s.shape[0] != t.shape[0]:
        raise ValueError(
            f"{student.where} has shape {list(student.tensor.shape)} and {teacher.where} {list(teacher.tensor.shape)}: "
            "different batch sizes; tap layers that keep the batch first, or say where it is: layout='lnc'"
        )


def _one_to_one(student: Feature, teacher: Feature) -> bool:
    """Whether two rows of tokens are of one number and, as far as is known, of one order."""
    s, t = student.channels_first().shape[2], teacher.channels_first().shape[2]
    known = student.extra is not None and teacher.extra is not None
    return s == t and not (known and student.extra != teacher.extra)


def _pool_both(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    size = [min(sides) for sides in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    return pool(student, size), pool(teacher, size)


def _match_tokens(student: Feature, teacher: Feature) -> tuple[Tensor, Tensor]:
    """Student map or tokens and teacher tokens -> tokens of one number, ``[N, C, L]``."""
    source, target = (part.flatten(2) for part in match_maps(student, teacher))
    before = teacher.before()
    kept = (student.before() if student.is_tokens else source)[:, :, : before.shape[2] if student.is_tokens else 0]
    mean = source.mean(2, keepdim=True).expand(-1, -1, before.shape[2] - kept.shape[2])
    return torch.cat([kept, mean, source], 2), torch.cat([before, target], 2)
