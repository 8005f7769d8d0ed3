"""Mean teacher: a moving average of the student teaches it."""

from __future__ import annotations

from torch import nn

from kdx.batch import Sight
from kdx.capture import Output
from kdx.knowledge.soft_targets import SoftTargets
from kdx.schemes.base import KnowledgeTerms, Task
from kdx.schemes.offline import Offline
from kdx.schemes.weights import Weight
from kdx.tasks.classification import cross_entropy
from kdx.teachers import EMA

__all__ = ["EmaTeacher"]


class EmaTeacher(Offline):
    """The exponential moving average of the student's weights teaches the student (mean teacher).

    Total: ``w task(z, y) + w_k knowledge(z, z_m)``, by default soft targets at T = 1 with weight 1. After optimizer
    step t: ``m <- a_t m + (1 - a_t) w``, ``a_t = min(decay, 1 - 1 / (t + 1))``: a plain mean at first, of the initial
    weights too, as in the authors' code. BatchNorm's running statistics are averaged as the weights are, and the
    average answers in evaluation mode (the authors let it gather statistics of its own, in training mode). It is saved
    with the scheme and not exported.

    It learns from unlabelled rows too. The paper compares probabilities by their mean squared error and raises the
    weight over the first epochs; in a recipe ``weight: {kind: warmup, to: 1.0, steps: 500}`` does the latter. Both
    sides see the same view, the student with its dropout.

    Args:
        student: the model to train.
        task: see :class:`kdx.Scheme`.
        knowledge: see :class:`kdx.Scheme`; replaces the soft targets.
        decay: a in [0, 1) after the warm-up; .999 is the paper's for long runs. An average of the last 1 / (1 - a)
            steps should be a fraction of the run.
        warm_up: whether the first steps are a plain mean.
        temperature: T of the soft targets.
        weight: of the soft targets, a number or a schedule.
        student_output: see :class:`kdx.Taps`.
        teacher_view: which inputs the average sees, where not those of the student, see :class:`kdx.teachers.Frozen`.

    Paper: Tarvainen, Valpola, Mean teachers are better role models, NeurIPS 2017, https://arxiv.org/abs/1703.01780.

    Example:
        >>> import torch
        >>> scheme = EmaTeacher(nn.Linear(3, 2))
        >>> sorted(scheme((torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))).terms)
        ['kd', 'task']
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        task: Task = cross_entropy,
        knowledge: KnowledgeTerms | None = None,
        decay: float = 0.999,
        warm_up: bool = True,
        temperature: float = 1.0,
        weight: Weight = 1.0,
        student_output: Output = None,
        teacher_view: Sight = None,
    ) -> None:
        super().__init__(
            student,
            EMA(student, decay=decay, warm_up=warm_up, output=student_output, view=teacher_view),
            task=task,
            knowledge=knowledge or {"kd": (weight, SoftTargets(temperature))},
            student_output=student_output,
        )
