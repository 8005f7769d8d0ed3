"""Snapshot distillation: the student at the end of one learning-rate cycle teaches the next cycle."""

from __future__ import annotations

from torch import nn

from kdx.batch import Sight
from kdx.capture import Output
from kdx.knowledge.soft_targets import SoftTargets
from kdx.ranges import check_whole
from kdx.schemes.base import KnowledgeTerms, Task
from kdx.schemes.offline import Offline
from kdx.tasks.classification import cross_entropy
from kdx.teachers import Snapshot

__all__ = ["SnapshotDistillation"]


class SnapshotDistillation(Offline):
    """Training in cycles of ``cycle`` epochs; the last student of a cycle teaches the whole next one.

    Total: ``w task(z, y)`` in the first cycle, then ``w task(z, y) + w_k knowledge(z, z of the last cycle's end)``, by
    default soft targets at T = 2 with weight 1. The learning rate should fall within each cycle and start anew with the
    next, so that the teacher is a good one and differs from its student: in a recipe
    ``schedule: {name: CosineAnnealingWarmRestarts, T_0: 4, every: epoch}`` beside ``cycle: 4``. The picture is in
    evaluation mode, is saved with the scheme and not exported. The paper's abstract says as much: cycles of the
    learning rate, the last snapshot of each for all of the next, its signal smoothed; how it smooths and
    weighs the signal is not taken from the paper.

    Args:
        student: the model to train.
        cycle: epochs in a cycle, >= 1. A run no longer than one cycle learns from the labels alone.
        task: see :class:`kdx.Scheme`.
        knowledge: see :class:`kdx.Scheme`; replaces the soft targets.
        temperature: T of the soft targets, on both sides; 2 is ours, as the weight is.
        weight: of the soft targets.
        student_output: see :class:`kdx.Taps`.
        teacher_view: which inputs the snapshot sees, where not those of the student, see :class:`kdx.teachers.Frozen`.

    Raises:
        ValueError: ``cycle`` is below 1.

    Paper: Yang et al., Snapshot Distillation: Teacher-Student Optimization in One Generation, CVPR 2019,
    https://arxiv.org/abs/1812.00123.

    Example:
        >>> import torch
        >>> scheme = SnapshotDistillation(nn.Linear(3, 2), cycle=2)
        >>> batch = torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)
        >>> for epoch in range(3):
        ...     scheme.epoch_start(epoch, 4)
        ...     print(sorted(scheme(batch).terms))
        ['task']
        ['task']
        ['kd', 'task']
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        cycle: int,
        task: Task = cross_entropy,
        knowledge: KnowledgeTerms | None = None,
        temperature: float = 2.0,
        weight: float = 1.0,
        student_output: Output = None,
        teacher_view: Sight = None,
    ) -> None:
        check_whole("cycle", cycle, least=1, instead="it is a number of epochs")
        super().__init__(
            student,
            Snapshot(student, every=cycle, output=student_output, view=teacher_view),
            task=task,
            knowledge=knowledge or {"kd": (weight, SoftTargets(temperature))},
            student_output=student_output,
        )
        self.cycle = cycle
