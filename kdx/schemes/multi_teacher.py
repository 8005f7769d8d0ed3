"""Several teachers, with different knowledge from each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import nn

from kdx.capture import LOGITS, Output
from kdx.schemes.base import KnowledgeTerms, Task
from kdx.schemes.offline import Offline
from kdx.tap import TapName
from kdx.tasks.classification import cross_entropy
from kdx.teachers import Ensemble, Teacher

__all__ = ["MultiTeacher"]


class MultiTeacher(Offline):
    """Several trained teachers teach one student; every component says whose knowledge it reads.

    Total: ``w_task * task(z_s, y) + sum_k w_k * knowledge_k(student, teachers)``. The tap ``logits`` on the teacher's
    side is the combination of all teachers (:class:`kdx.teachers.Ensemble`), ``<name>/<tap>`` what one of them gives::

        knowledge:
          kd: {name: soft-targets, temperature: 4.0}                                    # of all
          hint: {name: hint, student: stage1, teacher: large/stage2}                    # the layers of one
          rkd: {name: rkd, student: avgpool, teacher: wide/avgpool}                     # the relations of another

    Args:
        student: the model to train.
        teachers: name -> trained model, held frozen, or :class:`kdx.teachers.Teacher`; at least two.
        task: see :class:`kdx.Scheme`.
        knowledge: see :class:`kdx.Scheme`.
        weights: ``"equal"``; ``"validation"``, in proportion to ``qualities``; ``"confidence"``, in each row by the
            teacher's cross-entropy with the label; or name -> number.
        over: what is combined, ``"logits"`` or ``"probabilities"`` softened at ``temperature``.
        temperature: T of the combined probabilities; that of the soft targets.
        qualities: name -> metric on held-out rows of which more is better, which an experiment fills in; it has none
            where the task's metric is an error.
        student_output: see :class:`kdx.Taps`.
        task_tap: see :class:`kdx.Offline`.

    Raises:
        ValueError: fewer than two teachers, or weights that do not fit them.
        CaptureError: a tap that no teacher has.

    The soft targets of CA-MKD, ``sum_k w_k T^2 KL(p_k || p_s)`` with confidence weights ``w_k`` per row, have the
    gradient of ``weights="confidence", over="probabilities"`` with T the soft targets' temperature; the authors' code
    divides them by the number of teachers as well. Its term between features, weighted by what the teacher's classifier
    makes of the student's adapted feature, is not offered.

    Papers: You et al., Learning from Multiple Teacher Networks, KDD 2017, https://doi.org/10.1145/3097983.3098135;
    for ``"confidence"`` Zhang et al., ICASSP 2022, https://arxiv.org/abs/2201.00007; code:
    https://github.com/Rorozhl/CA-MKD.

    Example:
        >>> import torch, kdx
        >>> teachers = {"one": nn.Linear(3, 2), "two": nn.Linear(3, 2)}
        >>> knowledge = {"all": kdx.SoftTargets(4.0), "two": kdx.SoftTargets(4.0, teacher="two/logits")}
        >>> scheme = MultiTeacher(nn.Linear(3, 2), teachers, knowledge=knowledge, weights={"one": 2.0, "two": 1.0})
        >>> sorted(scheme((torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))).terms)
        ['all', 'task', 'two']
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module | Teacher],
        *,
        task: Task = cross_entropy,
        knowledge: KnowledgeTerms | None = None,
        weights: Literal["equal", "validation", "confidence"] | Mapping[str, float] = "equal",
        over: Literal["logits", "probabilities"] = "logits",
        temperature: float = 1.0,
        qualities: Mapping[str, float] | None = None,
        student_output: Output = None,
        task_tap: TapName = LOGITS,
    ) -> None:
        if any(teacher is student for teacher in teachers.values()):
            raise ValueError("the student is one of the teachers, which would be trained. Pass a copy")
        if weights == "validation":
            if qualities is None:
                raise ValueError(
                    "weights='validation' needs qualities: for each teacher a metric on held-out rows of "
                    "which more is better; give numbers by name"
                )
            weights = qualities
        combined = Ensemble(teachers, weights=weights, over=over, temperature=temperature)
        super().__init__(
            student, combined, task=task, knowledge=knowledge, student_output=student_output, task_tap=task_tap
        )
