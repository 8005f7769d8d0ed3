"""The base of the schemes that train one model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from kdx.capture import LOGITS, Output, Taps
from kdx.head import Head
from kdx.schemes.base import KnowledgeTerms, Scheme, Task, naming
from kdx.tap import TapName
from kdx.tasks.classification import cross_entropy
from kdx.tasks.heads import Heads

__all__ = ["OneStudent"]


class OneStudent(Scheme):
    """Trains one model, whose layers ``self.taps`` captures; it is evaluated and exported as ``student``.

    Args:
        student: the model to train.
        task: see :class:`kdx.Scheme`.
        knowledge: see :class:`kdx.Scheme`.
        student_output: see :class:`kdx.Taps`.
        task_tap: the tap whose outputs the task loss reads, where that is not the model's output.

    Raises:
        ValueError: ``task_tap`` beside a task with several heads, which say themselves what each reads; a task that
            reads logits beside a :class:`kdx.Head`, with which they are not made.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        task: Task = cross_entropy,
        knowledge: KnowledgeTerms | None = None,
        student_output: Output = None,
        task_tap: TapName = LOGITS,
    ) -> None:
        super().__init__(task=task, knowledge=knowledge)
        if task_tap != LOGITS and isinstance(self.task, Heads):
            raise ValueError(
                f"task_tap: expected none beside the task 'heads', whose heads say by output= what each reads, got "
                f"{str(task_tap)!r}; leave it out"
            )
        self.task_tap = str(task_tap)
        self.student = student
        self.taps = Taps(student, self.task_taps, output=student_output)
        takes_held = self.task is None or self.task_weight == 0 or getattr(self.task, "takes_held", False)
        if self.task_tap in self.taps.held_taps and not takes_held:
            raise ValueError(
                f"task: {self.task!r} reads the tensor of the student's logits, and kdx.Head says that it is held as "
                "hidden states and a head, so that it is never made; the task 'causal-lm', without label_smoothing, "
                "takes it so. Take that, or leave the head out of student_output"
            )

    @property
    @override
    def students(self) -> dict[str, nn.Module]:
        return {"student": self.student}

    @override
    def output_of(self, student: str) -> Callable[[Any], Tensor] | None:
        return self.taps.output

    @override
    def head_of(self, student: str) -> Head | None:
        return self.taps.head

    def _tap_both_sides(self) -> None:
        """Captures what the components read on either side, for a student that is its own teacher."""
        for name, component in self.components.items():
            with naming(name):
                self.taps.add((*component.student_taps, *component.teacher_taps))
