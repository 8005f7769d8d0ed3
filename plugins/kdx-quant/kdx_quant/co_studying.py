"""Co-studying: a trained teacher and a quantised student learn from each other."""

from __future__ import annotations

from typing import Any

from torch import nn
from typing_extensions import override

from kdx import LOGITS, Batch, Knowledge, Mean
from kdx.schemes import KnowledgeTerms, Online, Task
from kdx.tasks import cross_entropy
from kdx.teachers import Live

__all__ = ["CoStudying"]


class CoStudying(Online):
    """A teacher in full precision and a quantised student learn from the labels and from each other's outputs.

    It is :class:`kdx.schemes.Online` with one more term: whatever compares the outputs of the two is counted the other
    way round too, as ``teacher/<name>`` with the same weight, the student being the one that is followed. The teacher
    so becomes one that few bits can follow. In a plan it begins with trained weights:
    ``Stage(..., scheme=Ref("co-studying"), starts={"teacher": "teacher"})``.

    Args:
        student: the quantised model.
        teacher: the model in full precision, or a :class:`kdx.teachers.Live` one.
        task: see :class:`kdx.Scheme`; its weight is the student's.
        knowledge: see :class:`kdx.Scheme`; one term at least compares logits.
        teacher_task: weight > 0 of the teacher's own task loss.

    Raises:
        ValueError: no component compares logits, so that the teacher would learn nothing from the student.

    Paper: Kim et al., QKD: Quantization-aware Knowledge Distillation, 2019, https://arxiv.org/abs/1911.12491, the
    phase of this name.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Live,
        *,
        task: Task = cross_entropy,
        knowledge: KnowledgeTerms | None = None,
        teacher_task: float = 1.0,
    ) -> None:
        super().__init__(student, teacher, task=task, knowledge=knowledge, teacher_task=teacher_task)
        if not self._of_outputs():
            raise ValueError(
                f"co-studying: a component that compares logits is needed, as soft-targets, which the teacher learns "
                f"from too; got {', '.join(self.components) or 'none'}"
            )

    @override
    def terms(self, batch: Batch) -> dict[str, Mean]:
        teacher, student = self.teacher.captured(batch), self.taps(batch.inputs)
        terms: dict[str, Mean] = self.task_terms(student, batch)
        terms |= self.knowledge_terms(self.components, student, teacher.detach(), batch)
        terms |= self.task_terms(teacher, batch, of="teacher", weight=self.teacher_task)
        back = self.knowledge_terms(self._of_outputs(), teacher, student.detach(), batch)
        return terms | {f"teacher/{name}": term for name, term in back.items()}

    def _of_outputs(self) -> dict[str, Knowledge]:
        """The components that read nothing but the logits of both."""
        found: dict[str, Any] = self.components
        return {name: part for name, part in found.items() if {*part.student_taps} == {LOGITS} == {*part.teacher_taps}}
