"""Residual distillation as a plan: a smaller student, and an assistant that learns what it misses."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from kdx.assistants.base import Assistant
from kdx.assistants.channels import teacher_channels
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

    With ``layer`` the residual is that of feature maps, as in the paper, in one stage ``distilled``: a student and an
    assistant of the same shares, whose maps add up before one classifier (``feature-sum``), under the scheme
    ``residual-features``, see :class:`kdx.schemes.ResidualFeatures`, with the recipe's knowledge between the sum and
    the teacher. Without it it is that of the outputs, which has one width in all three networks.

    Args:
        vary: the integer option that sizes the student's model.
        share: of the budget that the student may use; the assistant gets what is left. 0.75 is ours.
        weight: of the residual term beside the recipe's task term; with ``layer`` of the student's term as well.
        layer: tap of the last map before pooling in the student's architecture; None for the outputs.
        teacher_layer: tap of the teacher's map; None takes the same name.
        classifier: name of the student's classifier, which the pair does without; for ``layer``.

    Raises:
        PlanError: the share is not between 0 and 1; while running: the budget is too small for two models.

    Paper: Gao et al., Residual Knowledge Distillation, 2020, https://arxiv.org/abs/2002.09168.

    Example:
        >>> plan = ResidualKD().plan(Ref("convnet", width=24), Ref("convnet", width=8))
        >>> [(stage.name, stage.teachers, stage.needs) for stage in plan]
        [('student', ('teacher',), ('teacher',)), ('distilled', ('teacher',), ('teacher', 'student'))]
    """

    links = 1

    def __init__(
        self,
        *,
        vary: str = "width",
        share: float = 0.75,
        weight: float = 1.0,
        layer: str | None = None,
        teacher_layer: str | None = None,
        classifier: str = "fc",
    ) -> None:
        if not 0 < share < 1:
            raise PlanError(f"share must lie between 0 and 1, since the assistant gets the rest; got {share}")
        self.vary = vary
        self.share = share
        if layer is None and teacher_layer is not None:
            raise PlanError("teacher_layer is the layer of feature maps; give layer too, that of the student")
        self.weight = weight
        self.layer = layer
        self.teacher_layer = layer if teacher_layer is None else teacher_layer
        self.classifier = classifier

    @override
    def plan(self, teacher: Ref, student: Ref) -> list[Stage]:
        Ladder(student, self.vary).size()  # says at once if it cannot be sized
        if self.layer is not None and self.teacher_layer is not None:
            pair = FeaturePair(student, self.vary, self.share, self.layer, self.teacher_layer, self.classifier)
            scheme = Ref("residual-features", teacher_layer=self.teacher_layer, mimic=self.weight, residual=self.weight)
            return [Stage("distilled", "distilled", pair, ("teacher",), scheme=scheme)]
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


@dataclass(frozen=True, slots=True)
class FeaturePair(Structure):
    """A new student within a share of a budget and a new assistant, as large as the rest allows, that add up maps.

    Args:
        asked: the model whose cost is the budget.
        vary: the integer option that sizes it.
        share: of its parameters and operations, for the student.
        layer: tap of the map in both.
        teacher_layer: tap of the teacher's map, whose channels the sum has.
        classifier: of both, which the pair does without.
    """

    asked: Ref
    vary: str
    share: float
    layer: str
    teacher_layer: str
    classifier: str

    @property
    @override
    def needs(self) -> tuple[str, ...]:
        return ("teacher",)

    @override
    def produce(self, finished: FinishedStages) -> Produced:
        channels = teacher_channels(finished.model("teacher"), self.teacher_layer, finished.example, "residual")
        budget = costs(finished, self.asked)
        student = largest(finished, self.asked, self.vary, [self.share * cost for cost in budget])
        ladder = Ladder(self.asked, self.vary)
        for size in range(ladder.size(), 0, -1):
            pair = Ref(
                "feature-sum",
                student=student,
                assistant=ladder.at(size),
                layer=self.layer,
                channels=channels,
                classifier=self.classifier,
            )
            found = costs(finished, pair)
            if all(cost <= most for cost, most in zip(found, budget, strict=True)):
                return Produced(pair)
        raise PlanError(
            f"no assistant beside {student} fits into {budget[0]} parameters and {budget[1]} operations: with "
            f"{self.vary} 1 the two have {found[0]} and {found[1]}, with the convolutions to the teacher's {channels} "
            "channels; lower share, ask for a larger student, or tap a narrower layer of the teacher"
        )


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
