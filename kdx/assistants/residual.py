"""Residual distillation as a plan: a smaller student, and an assistant that learns what it misses."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from kdx.assistants.base import Assistant
from kdx.assistants.placement import Ladder
from kdx.errors import PlanError
from kdx.ref import Ref
from kdx.stage import FinishedStages, Produced, Stage, Structure

__all__ = ["ResidualKD"]


class ResidualKD(Assistant):
    """A student and an assistant that together cost at most what was asked; the sum of their outputs is the result.

    Stage ``student`` distils a smaller version of the recipe's student (its largest ``vary`` with at most ``share`` of
    the cost) under the recipe's scheme. Stage ``distilled`` trains an assistant on what that one misses of the teacher
    (:class:`kdx.schemes.Residual`) and exports the two as one model, ``residual-sum``. The budget is the cost
    of the recipe's student, in parameters and in operations: the pair exceeds neither. Both parts are of the student's
    architecture.

    The paper derives both from the student's channels and lets the assistant learn residuals of feature maps; here it
    learns the residual of the outputs, which has one width in all three networks.

    Args:
        vary: the integer option that sizes the student's model.
        share: of the budget that the student may use; the assistant gets what is left. 0.75 is ours.
        weight: of the residual term beside the recipe's task term.

    Raises:
        PlanError: the share is not between 0 and 1; while running: the budget is too small for two models.

    Paper: Gao et al., Residual Knowledge Distillation, 2020, https://arxiv.org/abs/2002.09168.

    Example:
        >>> plan = ResidualKD().plan(Ref("convnet", width=24), Ref("convnet", width=8))
        >>> [(stage.name, stage.teachers, stage.needs) for stage in plan]
        [('student', ('teacher',), ('teacher',)), ('distilled', ('teacher',), ('teacher', 'student'))]
    """

    links = 1

    def __init__(self, *, vary: str = "width", share: float = 0.75, weight: float = 1.0) -> None:
        if not 0 < share < 1:
            raise PlanError(f"share must lie between 0 and 1, since the assistant gets the rest; got {share}")
        self.vary = vary
        self.share = share
        self.weight = weight

    @override
    def plan(self, teacher: Ref, student: Ref) -> list[Stage]:
        Ladder(student, self.vary).size()  # says at once if it cannot be sized
        scheme = Ref("residual", weight=self.weight)
        return [
            Stage("student", "assistant", Shrunk(student, self.vary, self.share), ("teacher",)),
            Stage("distilled", "distilled", Pair(student, self.vary), ("teacher",), scheme=scheme),
        ]


@dataclass(frozen=True, slots=True)
class Shrunk(Structure):
    """The largest version of a model that costs at most a share of it.

    Args:
        asked: the model whose cost is the budget.
        vary: the integer option that sizes it.
        share: of its parameters and operations.
    """

    asked: Ref
    vary: str
    share: float

    @override
    def produce(self, finished: FinishedStages) -> Produced:
        budget = [self.share * cost for cost in costs(finished, self.asked)]
        return Produced(largest(finished, self.asked, self.vary, budget))


@dataclass(frozen=True, slots=True)
class Pair(Structure):
    """The trained model of stage ``student`` and a new assistant, as large as the budget of ``asked`` leaves room for.

    Args:
        asked: the model whose cost is the budget.
        vary: the integer option that sizes it.
    """

    asked: Ref
    vary: str

    @property
    @override
    def needs(self) -> tuple[str, ...]:
        return ("student",)

    @override
    def produce(self, finished: FinishedStages) -> Produced:
        student = finished.ref("student")
        spent = zip(costs(finished, self.asked), costs(finished, student), strict=True)
        assistant = largest(finished, self.asked, self.vary, [asked - used for asked, used in spent])
        pair = Ref("residual-sum", student=student, assistant=assistant)
        weights = finished.build(pair).state_dict()
        weights |= {f"student.{name}": value for name, value in finished.model("student").state_dict().items()}
        return Produced(pair, weights)


def costs(finished: FinishedStages, ref: Ref) -> tuple[int, int]:
    """Parameters and operations of a model."""
    return finished.parameters(ref), finished.flops(ref)


def largest(finished: FinishedStages, ref: Ref, vary: str, budget: list[float] | list[int]) -> Ref:
    """The model with the largest ``vary``, at most its own, whose costs are within the budget.

    Raises:
        PlanError: not even the smallest is.
    """
    ladder = Ladder(ref, vary)
    for size in range(ladder.size(), 0, -1):
        found = ladder.at(size)
        if all(cost <= most for cost, most in zip(costs(finished, found), budget, strict=True)):
            return found
    parameters, flops = costs(finished, ladder.at(1))
    raise PlanError(
        f"no {ref.name} fits into {budget[0]:.0f} parameters and {budget[1]:.0f} operations: with {vary} 1 it has "
        f"{parameters} and {flops}; change share, or ask for a larger student"
    )
