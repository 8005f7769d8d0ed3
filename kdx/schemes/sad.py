"""SAD: attention maps of deeper stages teach the stages before them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Captured, Output
from kdx.features.adapters import to_maps
from kdx.features.operands import in_full_precision
from kdx.knowledge.base import Knowledge
from kdx.losses import Mean
from kdx.ranges import check_number
from kdx.schemes.base import KnowledgeTerms, Task
from kdx.schemes.parts.layers import SelfLayers
from kdx.tap import TapName, TapOptions
from kdx.tasks.classification import cross_entropy

__all__ = ["SAD", "AttentionMap", "attention_map_distance"]


@in_full_precision
def attention_map_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of attention maps ``softmax over pixels of B(sum_c F^2)``.

    Args:
        student: map ``[N, C, H, W]``, or with one or three axes of places, any float dtype; computed in float32
            (float64 stays).
        teacher: map ``[N, C', H', W']``; its ``sum_c F^2`` is resized to H x W bilinearly (B).

    Returns:
        A scalar, the mean over batch and pixels, with gradients to both.

    Example:
        >>> flat, point = torch.zeros(1, 3, 1, 2), torch.tensor([100.0, 0.0]).view(1, 1, 1, 2)
        >>> attention_map_distance(flat, point).item()
        0.25
    """
    s, t = (feature.square().sum(1, keepdim=True) for feature in (student, teacher))  # [N, 1, H, W]
    if t.shape != s.shape:
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[s.dim() - 2]
        t = F.interpolate(t, size=s.shape[2:], mode=mode, align_corners=False)
    return (s.flatten(1).softmax(1) - t.flatten(1).softmax(1)).square().mean()


class AttentionMap(Knowledge):
    """:func:`attention_map_distance` between two stages.

    Example:
        >>> feature = torch.randn(2, 3, 4, 4)
        >>> AttentionMap()(Captured({"feature": feature}), Captured({"feature": -feature.flip(1)}), None).item() < 1e-12
        True
    """

    kind = "feature"

    def __init__(self) -> None:
        super().__init__(student="feature", teacher="feature")

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> Tensor:
        return attention_map_distance(*to_maps([*self.student_features(student), *self.teacher_features(teacher)]))


class SAD(SelfLayers):
    """Self attention distillation: each stage mimics where the next deeper one looks, from a chosen step on.

    Total: ``w task(z, y) + w_sad sum_m mean (psi(F_m) - sg psi(F_{m+1}))^2`` with
    ``psi(F) = softmax over pixels of B(sum_c F^2)`` and B a bilinear resize of the deeper map to the size of the
    shallower one. The gradient reaches the stages up to m; the deeper map is detached. Nothing is added to the student.

    The deeper maps must have something to say, so the paper starts after 40,000 of 60,000 steps; so does this, after
    two thirds of them, unless ``start`` says otherwise. Before that the terms are 0. In a loop of one's own call
    ``scheme.advance(step, total)`` before each step.

    Args:
        student: the model to train: a CNN in stages, or a transformer encoder.
        task: see :class:`kdx.Scheme`.
        knowledge: replaces the attention maps, for every pair of neighbours with its own copy. Components read
            ``feature`` (what the stage gives) and ``embedding`` (the same, pooled to ``[N, D]``).
        weight: w_sad, of the default knowledge.
        start: share of the optimizer steps without the terms, in [0, 1].
        stages: taps from shallow to deep; None finds them.
        student_output: see :class:`kdx.Taps`.
        **features: of the stages, see :class:`kdx.tap.TapOptions`; tokens of different number need ``grid``.

    Paper: Hou et al., Learning Lightweight Lane Detection CNNs by Self Attention Distillation, ICCV 2019,
    https://arxiv.org/abs/1908.00821; weight .1 as there. Code, in Lua:
    https://github.com/cardwing/Codes-for-Lane-Detection; it squares, sums over channels, resizes, takes the softmax and
    the mean squared error, as here. Where a re-implementation (https://github.com/InhwanBae/ENet-SAD_Pytorch) lets the
    gradient reach both maps, here the deeper one only teaches.

    Example:
        >>> from kdx.models import ConvNet
        >>> scheme = SAD(ConvNet(width=4, stages=3), start=0.0)
        >>> batch = torch.randn(4, 1, 28, 28), torch.zeros(4, dtype=torch.int64)
        >>> scheme.setup(batch)
        >>> list(scheme(batch).terms)
        ['task', 'sad']
    """

    active: Tensor

    def __init__(
        self,
        student: nn.Module,
        *,
        task: Task = cross_entropy,
        knowledge: KnowledgeTerms | None = None,
        weight: float = 0.1,
        start: float = 2 / 3,
        stages: Sequence[TapName] | None = None,
        student_output: Output = None,
        **features: Unpack[TapOptions],
    ) -> None:
        start = check_number("start", start, least=0, most=1, instead="it is a share of the steps")
        super().__init__(
            student,
            task=task,
            knowledge=knowledge or {"sad": (weight, AttentionMap())},
            names=("feature", "embedding"),
            stages=stages,
            student_output=student_output,
            **features,
        )
        self.start = start
        self.register_buffer("active", torch.tensor(float(start == 0)))

    @override
    def advance(self, step: int, total: int) -> None:
        super().advance(step, total)
        self.active.fill_(float(step >= self.start * total))

    @override
    def lessons(self, captured: Captured) -> list[tuple[Captured, Captured]]:
        read = {
            tap for component in self.components.values() for tap in component.student_taps + component.teacher_taps
        }
        seen = []
        for feature in self.stage_features(captured):
            pooled = {"embedding": feature.vector()} if "embedding" in read else {}
            seen.append(Captured({"feature": feature.tensor} | pooled, layouts={"feature": feature.given}))
        return [(shallow, deep.detach()) for shallow, deep in itertools.pairwise(seen)]

    @override
    def terms(self, batch: Batch) -> dict[str, Mean]:
        captured = self.captured(batch)
        terms = self.task_terms(captured, batch)
        active = self.active.clone()  # the buffer may change before the backward pass
        for k, (shallow, deep) in enumerate(self.lessons(captured)):
            for name, term in self.knowledge_terms(self.lesson_components(k), shallow, deep, batch).items():
                now = term.scaled(active)
                terms[name] = terms[name].plus(now) if name in terms else now
        return terms
