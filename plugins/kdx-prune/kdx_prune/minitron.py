"""Minitron: depth and width pruned by what flows through the teacher, the best shape found by short distillations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from kdx import Assistant, Ref, Stage
from kdx.assistants import FinishedStages, Produced, Structure
from kdx.errors import PlanError
from kdx_prune.pruned import Budget, Cut, Pruned

__all__ = ["BestOf", "Minitron"]


class BestOf(Structure):
    """The model of the stage that does best on the validation rows, with its trained weights.

    Args:
        stages: names of the candidates; of equal ones the first.
    """

    def __init__(self, stages: Sequence[str]) -> None:
        self.stages = tuple(stages)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BestOf) and self.stages == other.stages

    def __hash__(self) -> int:
        return hash(self.stages)

    def __repr__(self) -> str:
        return f"BestOf({self.stages!r})"

    @property
    @override
    def needs(self) -> tuple[str, ...]:
        return self.stages

    @override
    def produce(self, finished: FinishedStages) -> Produced:
        """See :meth:`kdx.assistants.Structure.produce`."""
        sign = 1 if finished.task.higher_is_better else -1
        best = max(self.stages, key=lambda stage: sign * finished.quality(stage))
        return Produced(finished.ref(best), finished.model(best).state_dict())


class Minitron(Assistant):
    """The teacher's depth and width are pruned by its activations in several shapes of one size; the best is distilled.

    Plan: for every share in ``depths`` a stage ``candidate-1``, ``candidate-2``, ... in which blocks of the lowest
    influence are left out down to that share of the teacher's cost and then channels of the lowest activation down to
    the budget, distilled for ``epochs`` epochs; ``distilled`` goes on with the candidate that is best on the validation
    rows. The budget stands with the student, ``student: {model: {name: derived, how: ..., flops: 25%}}``, or here.

    Args:
        depths: shares of the teacher's cost at which blocks stop being left out; 1 leaves out none.
        epochs: length of a candidate's distillation.
        width: options of the derivation ``prune`` for the channels.
        params: the most parameters, as ``25%`` of the teacher's or ``60k``, instead of the student's budget.
        flops: the most operations, likewise.
        latency: the longest time of one sample, likewise.

    Raises:
        PlanError: an option out of range, or no budget.

    Paper: Muralidharan et al., Compact Language Models via Pruning and Knowledge Distillation, NeurIPS 2024,
    https://arxiv.org/abs/2407.14679.

    Example:
        >>> plan = Minitron(depths=[1.0, 0.75], flops="50%").plan(Ref("resnet"), Ref("resnet"))
        >>> [(stage.name, [cut.how.name for cut in getattr(stage.model, "cuts", ())]) for stage in plan]
        [('candidate-1', ['prune']), ('candidate-2', ['prune-blocks', 'prune']), ('distilled', [])]
    """

    def __init__(
        self,
        *,
        depths: Sequence[float] = (1.0, 0.75),
        epochs: int = 1,
        width: Mapping[str, Any] | None = None,
        params: str | float | None = None,
        flops: str | float | None = None,
        latency: str | float | None = None,
    ) -> None:
        if not depths or not all(0 < share <= 1 for share in depths):
            raise PlanError(f"depths must be shares of the teacher's cost, above 0 and up to 1; got {list(depths)}")
        if epochs < 1:
            raise PlanError(f"epochs must be at least 1, got {epochs}")
        self.depths = tuple(float(share) for share in depths)
        self.epochs = epochs
        self.width = Ref("prune", **{"importance": "activation", "spread": "uniform", **(width or {})})
        budget = {"params": params, "flops": flops, "latency": latency}
        self.budget = Budget.of(budget, "minitron") if any(v is not None for v in budget.values()) else None

    @override
    def plan(self, teacher: Ref, student: Ref) -> list[Stage]:
        own = student.options if student.name == "derived" else {}
        budget = self.budget or Budget.of(own, "minitron (or the student's model)")
        stages = []
        for number, share in enumerate(self.depths, start=1):
            blocks = Cut(Ref("prune-blocks", criterion="influence"), Budget(budget.kind, share))
            cuts = [*([blocks] if share < 1 else []), Cut(self.width, budget)]
            name = f"candidate-{number}"
            stages.append(Stage(name, "assistant", Pruned(cuts), ("teacher",), train={"epochs": self.epochs}))
        return [*stages, Stage("distilled", "distilled", BestOf([stage.name for stage in stages]), ("teacher",))]
