"""ReviewKD: deep student features help the shallow ones to explain the teacher."""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Captured
from kdx.features.adapters import BatchNorm, convolution, pool, to_maps, trained
from kdx.features.operands import check_same_shape, in_full_precision
from kdx.knowledge.base import Knowledge
from kdx.tap import TapNames, TapOptions

__all__ = ["ReviewKD", "hcl"]

LEVELS = (4, 2, 1)
"""Sides of the pooled maps of the hierarchical context loss."""


@in_full_precision
def hcl(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss: squared error of two maps and of their pooled versions.

    ``sum_l w_l mse_l / sum_l w_l`` over the full map (weight 1) and the maps pooled to 4x4, 2x2 and 1x1 that are
    smaller than it, with weights 1/2, 1/4 and 1/8 in the order of those that exist. The division by the sum of the
    weights is that of the authors' code.

    Args:
        student: ``[N, C, ...]``, any float dtype; computed in float32 (float64 stays).
        teacher: of the same shape.

    Returns:
        A scalar, with gradients to both.

    Example:
        >>> import torch
        >>> s = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 1, 2, 2)
        >>> round(hcl(s, torch.zeros_like(s)).item(), 4)  # (1 + 0 / 2) / (1 + 1 / 2)
        0.6667
    """
    check_same_shape(student, teacher)
    side = min(student.shape[2:])
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for level in LEVELS:
        if level < side:
            weight /= 2
            total += weight
            size = [level] * (student.dim() - 2)
            loss = loss + weight * F.mse_loss(pool(student, size), pool(teacher, size))
    return loss / total


class ReviewKD(Knowledge):
    """Student features fused from deep to shallow, compared with the teacher's level by level.

    Loss: the sum over levels of :func:`hcl` between the fused student feature and the teacher feature; no ``T^2``.
    Gradients reach the student and the fusion. From the deepest level up, a level's feature goes through a 1x1
    convolution with BatchNorm, is mixed with what comes from the level below it (resized, by two attention maps from a
    1x1 convolution and a sigmoid), handed to the next level, and goes through a 3x3 convolution with BatchNorm to the
    teacher's channels. Features are resized to the teacher's size by nearest neighbours. The fusion has
    ``min(512, channels of the deepest student feature)`` channels and is learned with the student.

    The authors weigh it between 0.6 and 8 for CIFAR-100, depending on the models, with a linear warm-up of 20 epochs.

    Args:
        student: taps from shallow to deep: maps ``[N, C, ...]``, or tokens that lie on a grid; a vector counts as a map
            of one pixel.
        teacher: taps from shallow to deep, as many.
        channels: channels of the fusion, None for those above.
        **features: see :class:`kdx.tap.TapOptions`.

    Paper: Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021, https://arxiv.org/abs/2104.09044.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> s = Captured({"a": torch.randn(2, 4, 8, 8), "b": torch.randn(2, 8, 4, 4)})
        >>> t = Captured({"a": torch.randn(2, 6, 8, 8), "b": torch.randn(2, 9, 4, 4)})
        >>> review = ReviewKD(student=("a", "b"), teacher=("a", "b"))
        >>> review.setup(s, t)
        >>> [tuple(feature.shape[1:]) for feature in review.fuse(list(s.values()), list(t.values()))]
        [(6, 8, 8), (9, 4, 4)]
    """

    kind = "feature"

    def __init__(
        self,
        *,
        student: TapNames,
        teacher: TapNames,
        channels: int | None = None,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, **features)
        self.channels = channels
        self.levels = nn.ModuleList()

    @property
    @override
    def ready(self) -> bool:
        return len(self.levels) > 0

    @override
    def setup(self, student: Captured, teacher: Captured) -> None:
        if self.ready:
            return
        s, t = self._maps(student, teacher)
        if len(s) != len(t):
            raise ValueError(
                f"ReviewKD compares level by level, but {len(s)} student and {len(t)} teacher layers are tapped; tap "
                "as many of each"
            )
        hidden = self.channels or min(512, s[-1].shape[1])
        for level, (source, target) in enumerate(zip(s, t, strict=True)):
            axes = source.dim() - 2
            part = _Level(source.shape[1], hidden, target.shape[1], axes=axes, fuses=level < len(s) - 1)
            self.levels.append(trained(part, source))

    def fuse(self, student: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
        """The student's maps, fused and brought to the channels and sizes of the teacher's."""
        fused: list[Tensor] = []
        below: Tensor | None = None
        for level in range(len(self.levels) - 1, -1, -1):
            out, below = self.levels[level](student[level], below, tuple(teacher[level].shape[2:]))
            fused.insert(0, out)
        return fused

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> Tensor:
        if not self.ready:
            raise RuntimeError("ReviewKD has no fusion yet; call scheme.setup(batch) before the optimizer is built")
        s, t = self._maps(student, teacher)
        with torch.autocast(s[0].device.type, enabled=False):
            return torch.stack([hcl(a, b) for a, b in zip(self.fuse(s, t), t, strict=True)]).sum()

    def _maps(self, student: Captured, teacher: Captured) -> tuple[list[Tensor], list[Tensor]]:
        s, t = self.student_features(student), self.teacher_features(teacher)
        maps = to_maps([feature.full() for feature in (*s, *t)])
        return maps[: len(s)], maps[len(s) :]


class _Level(nn.Module):
    """Attention-based fusion of one level with the one below."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, axes: int, fuses: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(convolution(inputs, hidden, axes), BatchNorm(hidden))
        self.leave = nn.Sequential(convolution(hidden, outputs, axes, 3, padding=1), BatchNorm(outputs))
        for part in (self.enter, self.leave):
            nn.init.kaiming_uniform_(part[0].get_parameter("weight"), a=1)
        self.attend = convolution(2 * hidden, 2, axes, bias=True) if fuses else None

    @override
    def forward(self, feature: Tensor, below: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """A level's feature, what came from below and the teacher's size -> for the teacher, for the next level."""
        mixed = self.enter(feature)
        if self.attend is not None and below is not None:
            below = _resize(below, mixed.shape[2:])
            attention = torch.sigmoid(self.attend(torch.cat([mixed, below], 1)))  # [N, 2, H, W]
            mixed = mixed * attention[:, :1] + below * attention[:, 1:]
        mixed = _resize(mixed, size)
        return self.leave(mixed), mixed


def _resize(feature: Tensor, size: tuple[int, ...]) -> Tensor:
    return feature if feature.shape[2:] == size else F.interpolate(feature, size, mode="nearest")
