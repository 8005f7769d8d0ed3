"""Stages, and the assistants that plan them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Assistant", "ModelRef", "Stage"]


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model that is not built yet: its registered name and its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stage:
    """One ordinary, resumable training run of a plan.

    Args:
        name: unique in the plan; also the name of its folder.
        role: ``"teacher"`` trains on all labels, ``"alone"`` on the student's labels, ``"untrained"`` not at all,
            ``"distilled"`` under the recipe's scheme.
        model: what is trained.
        teachers: names of earlier stages whose models teach here; the first is the largest.
    """

    name: str
    role: Literal["teacher", "alone", "untrained", "distilled"]
    model: ModelRef
    teachers: tuple[str, ...] = ()


class Assistant(ABC):
    """Plans the stages between a teacher and a student.

    A plan moves no weights and is the same every time it is made.
    """

    @abstractmethod
    def plan(self, teacher: ModelRef, student: ModelRef) -> list[Stage]:
        """Stages in the order in which they run; the last one trains the student.

        Args:
            teacher: model of the stage ``"teacher"``, which runs first and which stages may name in ``teachers``.
            student: what the plan ends with.
        """
