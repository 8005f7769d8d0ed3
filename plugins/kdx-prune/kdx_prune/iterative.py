"""Iterative pruning: prune, distil, prune."""

from __future__ import annotations

from typing_extensions import override

from kdx import Assistant, Ref, Stage
from kdx.errors import PlanError
from kdx_prune.pruned import Budget, Cut, Pruned

__all__ = ["IterativePruning"]


class IterativePruning(Assistant):
    """The teacher is pruned a little, distilled, pruned a little more, and so on down to the student's size.

    Plan: ``pruned-1``, ``pruned-2``, ... and ``distilled``, ``steps`` stages in all. Each prunes the model of the one
    before (the first one the teacher), starts from what is left of its weights, and is taught by the teacher under the
    recipe's scheme. Costs fall by equal ratios. How it is pruned and how far stands with the student,
    ``student: {model: {name: derived, how: {name: prune}, flops: 25%}}``, which is then also what the student alone is
    (pruned in one step); or in the options here.

    Args:
        steps: how many times it is pruned, at least 1.
        epochs: length of every stage but the last; None takes the recipe's.
        how: a derivation with its options, instead of the student's.
        params: the most parameters, as ``25%`` of the teacher's or ``60k``, instead of the student's budget.
        flops: the most operations, likewise.
        latency: the longest time of one sample, likewise.

    Raises:
        PlanError: an option out of range; or neither the options nor the student say how to prune and how far.

    Paper: Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017,
    https://arxiv.org/abs/1611.06440, prunes and fine-tunes in turns; here every turn is distilled.

    Example:
        >>> student = Ref("derived", how="prune", flops="25%")
        >>> for stage in IterativePruning(steps=2).plan(Ref("convnet"), student):
        ...     print(stage.name, stage.model.of, stage.model.cuts[0].way)
        pruned-1 teacher 0.5
        distilled pruned-1 1.0
    """

    def __init__(
        self,
        *,
        steps: int = 3,
        epochs: int | None = None,
        how: Ref | str | dict[str, object] | None = None,
        params: str | float | None = None,
        flops: str | float | None = None,
        latency: str | float | None = None,
    ) -> None:
        if steps < 1:
            raise PlanError(f"steps must be at least 1, got {steps}")
        if epochs is not None and epochs < 1:
            raise PlanError(f"epochs must be at least 1, got {epochs}")
        self.steps = steps
        self.epochs = epochs
        self.how = None if how is None else Ref.of(how, "how")
        budget = {"params": params, "flops": flops, "latency": latency}
        self.budget = Budget.of(budget, "iterative-pruning") if any(v is not None for v in budget.values()) else None

    @override
    def plan(self, teacher: Ref, student: Ref) -> list[Stage]:
        own = student.options if student.name == "derived" else {}
        how = self.how if self.how is not None else own.get("how")
        if how is None:
            raise PlanError(
                "iterative-pruning is not told how to prune: write student: {model: {name: derived, how: prune, flops: "
                "25%}}, or how: and flops: in the assistant"
            )
        budget = self.budget or Budget.of(own, "student.model")
        stages: list[Stage] = []
        for step in range(1, self.steps + 1):
            last, before = step == self.steps, f"pruned-{step - 1}" if step > 1 else "teacher"
            cut = Cut(Ref.of(how, "how"), budget, step / self.steps)
            train = {"epochs": self.epochs} if self.epochs is not None and not last else {}
            stages.append(
                Stage(
                    "distilled" if last else f"pruned-{step}",
                    "distilled" if last else "assistant",
                    Pruned([cut], of=before, inherit=bool(own.get("inherit", True)) or not last),
                    ("teacher",),
                    train=train,
                )
            )
        return stages
