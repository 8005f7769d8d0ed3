"""The front of quality and cost, and the student that is chosen on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.experiment import Quality
from kdx_search.study import SearchStudy

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["chosen_of", "front_of"]


def front_of(study: SearchStudy, quality: Quality) -> list[FrozenTrial]:
    """The trials within the limits that no other one beats in quality without costing more, cheapest first.

    Of several with the same quality and cost the first one stands for all.
    """
    sign = 1 if quality.higher_is_better else -1
    best: list[FrozenTrial] = []
    within = [each for each in study.trials("COMPLETE") if all(over <= 0 for over in each.constraints.values())]
    for trial in sorted(within, key=lambda each: (each.values[1], -sign * each.values[0], each.number)):
        if not best or sign * trial.values[0] > sign * best[-1].values[0]:
            best.append(trial)
    return best


def chosen_of(study: SearchStudy, quality: Quality, tolerance: float = 0.0) -> FrozenTrial | None:
    """The cheapest trial of the front whose quality is within ``tolerance`` of the best; None without a front."""
    front = front_of(study, quality)
    if not front:
        return None
    best = front[-1].values[0]
    return next(trial for trial in front if abs(trial.values[0] - best) <= tolerance)
