"""Early-stopped teachers: a less trained teacher is easier to follow."""

from __future__ import annotations

from typing_extensions import override

from kdx import Assistant, Ref, Stage

__all__ = ["EarlyStoppedTeacher"]


class EarlyStoppedTeacher(Assistant):
    """The teacher's architecture is trained once more, for few epochs; that one teaches the student.

    Plan: ``early-teacher`` (the teacher's model, its own training recipe with ``epochs`` passes and the schedule
    fitted to them, last weights kept) and then ``distilled``. The recipe's own teacher is trained or loaded as always
    and stays in the report, so that both accuracies are seen; it does not teach.

    The paper finds that a large teacher trained to the end can be a worse teacher than one stopped early, when the
    student is too small to follow. How many epochs are best depends on the pair: try several.

    Args:
        epochs: passes over the data for the early teacher, at least 1.

    Raises:
        ValueError: ``epochs`` is less than 1.

    Paper: Cho, Hariharan, On the Efficacy of Knowledge Distillation, ICCV 2019, https://arxiv.org/abs/1910.01348. It
    also stops the distillation itself early; here the recipe's scheme decides that.

    Example:
        >>> plan = EarlyStoppedTeacher(epochs=2).plan(Ref("convnet"), Ref("mlp"))
        >>> [(stage.name, stage.teachers) for stage in plan]
        [('early-teacher', ()), ('distilled', ('early-teacher',))]
    """

    def __init__(self, *, epochs: int) -> None:
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        self.epochs = epochs

    @override
    def plan(self, teacher: Ref, student: Ref) -> list[Stage]:
        return [
            Stage("early-teacher", "teacher", teacher, train={"epochs": self.epochs}, select=False),
            Stage("distilled", "distilled", student, teachers=("early-teacher",)),
        ]
