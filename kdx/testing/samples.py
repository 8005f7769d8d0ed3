"""Inputs that a knowledge component is tried on, and its loss and gradients for them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdx.batch import Batch
from kdx.capture import LOGITS, Captured
from kdx.knowledge.base import Knowledge
from kdx.losses import mean_of
from kdx.testing.check import fail, require
from kdx.testing.tags import KnowledgeTags, Shapes

__all__ = ["Sample", "declared", "draw", "loss_and_gradients", "prepared", "same", "value_of"]

MAP = (3, 4, 4)


class Sample(NamedTuple):
    """One batch as a component sees it."""

    student: Captured
    teacher: Captured
    batch: Batch

    def to(self, dtype: torch.dtype) -> Sample:
        """The same with features of another dtype."""
        student, teacher = (
            side.having({name: value.to(dtype) for name, value in side.items()})
            for side in (self.student, self.teacher)
        )
        return Sample(student, teacher, self.batch)

    def at(self, rows: Tensor | slice) -> Sample:
        """Some of its samples, in another order."""
        student, teacher = (
            side.having({name: value[rows] for name, value in side.items()}) for side in (self.student, self.teacher)
        )
        chosen = self.batch.at(rows)
        return Sample(student, teacher, chosen._replace(inputs=self.batch.inputs))


def draw(component: Knowledge, tags: KnowledgeTags, dtype: torch.dtype = torch.float32) -> Sample:
    """The batch that a component is tried on; every call gives the same numbers."""
    if tags.inputs is not None:
        student, teacher, batch = tags.inputs(tags.rows)
        return Sample(Captured(student), Captured(teacher), batch).to(dtype)
    generator = torch.Generator().manual_seed(0)
    student = _features(component.student_taps, tags.student_shapes, tags, generator)
    teacher = _features(component.teacher_taps, tags.teacher_shapes, tags, generator)
    targets = torch.arange(tags.rows) % tags.classes
    index = torch.randperm(tags.samples, generator=generator)[: tags.rows]
    return Sample(student, teacher, Batch(None, targets, index)).to(dtype)


def _features(taps: Iterable[str], shapes: Shapes, tags: KnowledgeTags, generator: torch.Generator) -> Captured:
    values: dict[str, Tensor] = {}
    patterns: dict[str, tuple[str, ...]] = {}
    for tap in taps:
        names = tuple(tap.replace("**", "*").replace("*", each) for each in "01") if "*" in tap else (tap,)
        patterns[tap] = names
        shape = shapes.get(tap, (tags.classes,) if tap == LOGITS else MAP)
        for name in names:
            values[name] = torch.randn(tags.rows, *shape, generator=generator, dtype=torch.float64)
    if LOGITS not in values:  # they are always captured
        values[LOGITS] = torch.randn(tags.rows, tags.classes, generator=generator, dtype=torch.float64)
    return Captured(values, patterns)


def declared(taps: Iterable[str], captured: Captured) -> list[str]:
    """The concrete names that a component's taps stand for."""
    return [name for tap in taps for name in captured.patterns.get(tap, (tap,))]


def prepared(component: Knowledge, sample: Sample, dtype: torch.dtype = torch.float32, *, seed: int = 0) -> Knowledge:
    """A copy in training mode whose learnable parts exist, built from ``sample``; the component is left as it is."""
    try:
        copied = copy.deepcopy(component)
    except Exception as error:
        fail(f"copy.deepcopy of it raised {type(error).__name__}: {error}")
    if not copied.ready:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            single = sample.to(torch.float32)
            copied.setup(single.student.detach(), single.teacher.detach())
    return copied.to(dtype).train()


def loss_and_gradients(
    component: Knowledge, sample: Sample, *, autocast: torch.dtype | None = None, seed: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, detached, and its gradients in the student's features; randomness is seeded.

    ``autocast`` is the dtype of autocast, None for none; the backward pass is never under it.
    """
    leaves = {name: value.detach().clone().requires_grad_() for name, value in sample.student.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = component(sample.student.having(leaves), sample.teacher.detach(), sample.batch)
    loss = value_of(loss)
    require(isinstance(loss, Tensor), f"it returned {type(loss).__name__}, not a tensor")
    require(loss.dim() == 0, f"the loss has shape {list(loss.shape)}, not that of one number")
    require(loss.requires_grad, "the loss has no graph; something in forward detached it from the student")
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return loss.detach(), dict(zip(leaves, found, strict=True))


def value_of(loss: Any) -> Any:
    """The number in what a component returned: itself, or the value of ``(value, count)``."""
    mean = mean_of("the loss", loss)
    return loss if mean is None else mean.value


def same(one: tuple[Tensor, Mapping[str, Tensor]], other: tuple[Tensor, Mapping[str, Tensor]]) -> bool:
    """Whether two losses and their gradients agree in every bit."""
    return torch.equal(one[0], other[0]) and all(torch.equal(one[1][name], other[1][name]) for name in one[1])
