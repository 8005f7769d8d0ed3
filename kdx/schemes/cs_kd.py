"""CS-KD: a sample's prediction is taught by that of another sample of its class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Output
from kdx.datasets.samplers import SameClassPairs
from kdx.knowledge.soft_targets import SoftTargets
from kdx.losses import Count, Counted, Mean
from kdx.modes import evaluating
from kdx.schemes.base import KnowledgeTerms, Task, setup_components
from kdx.schemes.one_student import OneStudent
from kdx.tasks.classification import cross_entropy

__all__ = ["CSKD"]


class CSKD(OneStudent):
    """Class-wise self-knowledge distillation: two samples of one class should be predicted alike.

    Total: ``w task(z(x), y) + w_k knowledge(z(x), sg z(x'))`` with x' another sample of the class of x, by default soft
    targets with T = 4 and weight 1. A batch holds the samples x first, then their partners x' in the same order, as
    :class:`kdx.datasets.SameClassPairs` makes it (a recipe takes it by itself). Only the first half has a task loss
    and a gradient; the partners go through the student in a pass of their own without gradient, in its present mode:
    while training, their BatchNorm is normalised by their own batch and moves the running statistics too, as in the
    authors' code.

    Args:
        student: the model to train.
        task: see :class:`kdx.Scheme`.
        knowledge: see :class:`kdx.Scheme`; replaces the soft targets. Both sides tap the student.
        temperature: T of the soft targets.
        weight: of the soft targets.
        student_output: see :class:`kdx.Taps`.

    Raises:
        ValueError: a batch without labels, of an odd number of rows, or whose halves are of different classes (looked
            at in every batch on a CPU, in the first one elsewhere).

    Paper: Yun et al., Regularizing Class-wise Predictions via Self-knowledge Distillation, CVPR 2020,
    https://arxiv.org/abs/2003.13964; T and weight as in the authors' code for CIFAR-100.

    Example:
        >>> scheme = CSKD(nn.Linear(3, 2))
        >>> sorted(scheme((torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))).terms)
        ['kd', 'task']
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        task: Task = cross_entropy,
        knowledge: KnowledgeTerms | None = None,
        temperature: float = 4.0,
        weight: float = 1.0,
        student_output: Output = None,
    ) -> None:
        super().__init__(
            student,
            task=task,
            knowledge=knowledge or {"kd": (weight, SoftTargets(temperature))},
            student_output=student_output,
        )
        self._checked = False
        self._tap_both_sides()

    @override
    def batches(self, targets: Tensor, batch_size: int, num_samples: int) -> SameClassPairs:
        return SameClassPairs(targets, batch_size, num_samples=num_samples)

    @override
    def setup(self, batch: Batch | Any) -> None:
        first, second = self._halves(Batch.of(batch))
        with evaluating(self.student):
            setup_components(self.components, lambda: self.taps(first.inputs), lambda: self.taps(second.inputs))

    @override
    def count(self, over: Counted, batch: Batch) -> Count:
        # a batch holds every sample with its partner, and the terms count the samples
        return super().count(over, batch.at(slice(batch.rows // 2)))

    @override
    def terms(self, batch: Batch) -> dict[str, Mean]:
        first, second = self._halves(batch)
        student = self.taps(first.inputs)
        with torch.no_grad():
            teacher = self.taps(second.inputs).detach()
        return self.task_terms(student, first) | self.knowledge_terms(self.components, student, teacher, first)

    def _halves(self, batch: Batch) -> tuple[Batch, Batch]:
        targets = batch.targets
        if not isinstance(targets, Tensor) or targets.dim() != 1 or targets.is_floating_point():
            came = f"{targets.dtype} of shape {list(targets.shape)}" if isinstance(targets, Tensor) else targets
            raise ValueError(
                "cs-kd pairs samples of one class and needs their labels as batch.targets, one integer for each "
                f"sample, got {came}; soft labels, pixels and tokens have no class of their sample"
            )
        rows = batch.rows
        if rows % 2:
            raise ValueError(f"a batch of cs-kd holds samples and then their partners; got {rows} rows. {HOW}")
        first, second = (batch.at(half) for half in (slice(rows // 2), slice(rows // 2, rows)))
        on_cpu = batch.targets.device.type == "cpu"
        if not torch.compiler.is_compiling() and (on_cpu or not self._checked):
            wrong = (first.targets != second.targets).nonzero().flatten().tolist()
            if wrong:
                pair = (int(first.targets[wrong[0]]), int(second.targets[wrong[0]]))
                raise ValueError(f"rows {wrong[0]} and {wrong[0] + rows // 2} have classes {pair}, not one. {HOW}")
            self._checked = True
        return first, second


HOW = "Give the loader batch_sampler=kdx.datasets.SameClassPairs(targets, pairs)"
