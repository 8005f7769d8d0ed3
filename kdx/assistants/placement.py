"""The places of assistants: a ladder of sizes between two models, and the rungs nearest to given accuracies."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import override

from kdx.errors import PlanError
from kdx.ref import Ref
from kdx.registry import default_plugins
from kdx.stage import FinishedStages, Produced, Structure

__all__ = ["ByAccuracy", "Ladder", "nearest_to"]


@dataclass(frozen=True, slots=True)
class Ladder:
    """Models that differ in one integer option.

    Args:
        base: gives the model's name and its other options.
        vary: the option.
    """

    base: Ref
    vary: str

    def size(self, model: Ref | None = None) -> int:
        """The value of the option in a model, its default if it is not given.

        Raises:
            PlanError: the model has no such integer option.
        """
        model = model or self.base
        value = model.options.get(self.vary)
        if value is None:
            parameter = inspect.signature(default_plugins().load("model", model.name)).parameters.get(self.vary)
            value = None if parameter is None else parameter.default
        if not isinstance(value, int) or isinstance(value, bool):
            raise PlanError(
                f"model {model.name!r} has no integer option {self.vary!r} to size it by; name one with vary, or give "
                "the models"
            )
        return value

    def at(self, size: int) -> Ref:
        """The model of one size."""
        self.size()
        return self.base.with_options(**{self.vary: size})

    def between(self, small: Ref, large: Ref, count: int) -> list[Ref]:
        """Up to ``count`` models strictly between two, largest first, spread evenly by ratio.

        Raises:
            PlanError: there is no size between them.
        """
        low, high = self.size(small), self.size(large)
        steps = [round(low * (high / low) ** (k / (count + 1))) for k in range(count, 0, -1)]
        sizes = [size for size in dict.fromkeys(steps) if low < size < high]
        if not sizes:
            raise PlanError(
                f"there is no {self.vary} between the student's {low} and the teacher's {high}; give the assistants "
                "by models or sizes"
            )
        return [self.at(size) for size in sizes]


@dataclass(frozen=True, slots=True)
class ByAccuracy(Structure):
    """The candidate whose accuracy in a short run lies nearest to a share of the way from teacher to student.

    Args:
        candidates: name of a finished stage -> the model that it tried.
        teacher: stage that tried the teacher's model for as long.
        student: stage that tried the student's.
        count: how many assistants are chosen; every candidate is chosen once.
        place: which of them this one is, 1 the nearest to the teacher.
    """

    candidates: Mapping[str, Ref]
    teacher: str
    student: str
    count: int
    place: int

    @property
    @override
    def needs(self) -> tuple[str, ...]:
        return (self.teacher, self.student, *self.candidates)

    @override
    def produce(self, finished: FinishedStages) -> Produced:
        high, low = finished.quality(self.teacher), finished.quality(self.student)
        targets = [high + (low - high) * k / (self.count + 1) for k in range(1, self.count + 1)]
        sized = sorted(self.candidates, key=lambda name: -finished.parameters(self.candidates[name]))
        chosen = nearest_to(targets, [finished.quality(name) for name in sized])
        return Produced(self.candidates[sized[chosen[self.place - 1]]])


def nearest_to(targets: Sequence[float], found: Sequence[float]) -> list[int]:
    """Positions in ``found``, one for each target, in their order, so that the sum of distances is the smallest.

    The order of ``found`` is kept, so that a chain never goes from a smaller model to a larger one whatever noise
    there is in its accuracies. Of equal choices the earliest positions win.

    Args:
        targets: wanted values.
        found: at least as many values.

    Raises:
        PlanError: there are fewer values than targets.

    Example:
        >>> nearest_to([0.8, 0.6], [0.9, 0.79, 0.7, 0.61])
        [1, 3]
    """
    if len(found) < len(targets):
        raise PlanError(f"{len(targets)} places cannot be taken by {len(found)} candidates")
    best: list[tuple[float, list[int]] | None] = [(0.0, []), *([None] * len(targets))]
    for position, value in enumerate(found):
        for taken in range(len(targets), 0, -1):  # downwards, so that a candidate is taken once
            before = best[taken - 1]
            if before is not None:
                cost = before[0] + abs(value - targets[taken - 1])
                now = best[taken]
                if now is None or cost < now[0]:
                    best[taken] = (cost, [*before[1], position])
    last = best[-1]
    assert last is not None  # there are enough candidates
    return last[1]
