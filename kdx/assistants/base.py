"""The base of all assistants."""

from __future__ import annotations

from abc import ABC, abstractmethod

from kdx.ref import Ref
from kdx.stage import Stage

__all__ = ["Assistant"]


class Assistant(ABC):
    """Plans the stages between a teacher and a student.

    A plan moves no weights and is the same every time it is made.

    Attributes:
        links: how many times knowledge is handed on between the teacher and the student; 1 is plain distillation.
        has_teacher: whether the recipe has a section ``teacher``. Without one a plan is given the student's model as
            the teacher, and its stages begin with the stage ``"alone"``.
    """

    links: int = 1
    has_teacher: bool = True

    @abstractmethod
    def plan(self, teacher: Ref, student: Ref) -> list[Stage]:
        """Stages in the order in which they run; the last one is ``"distilled"`` and trains the student.

        Args:
            teacher: model of the stage ``"teacher"``, which runs before the plan and which stages may name in
                ``teachers``. So do the stages ``"alone"`` and every other control of the recipe.
            student: what the plan ends with.
        """
