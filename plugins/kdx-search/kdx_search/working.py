"""Trials one after the other: the next one is claimed, run and told, until there are enough."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdx.authoring import sole_writer
from kdx.errors import InUseError, KdxError
from kdx.training import Compute
from kdx_search.study import COMPUTE, COST, SearchStudy
from kdx_search.trials import TrialRunner

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

__all__ = ["compute_of", "counted", "work"]

SAME = "same_as"
"""Attribute of a trial whose point was tried before; it takes the values of that one."""
ASKS = 30
"""Points that are asked for at most, for each trial; the others are above a limit or were tried before."""
FAILURES = 3
"""Trials that fail before the search gives up, if none has ended well."""


def work(runner: TrialRunner) -> None:
    """Runs trials until there are enough of them.

    Raises:
        KdxError: the first trials all failed, or what is limited cannot be counted.
        Interrupted: a signal came; the trial stays open.
    """
    failed = 0
    while True:
        with ExitStack() as held:
            trial = _next(runner, held)
            if trial is None:
                return
            study = runner.study
            values = study.values(trial)
            if (known := _tried(study, trial, values)) is not None:
                trial.set_user_attr(SAME, known.number)
                for name in (COST, "quality_by_epoch"):
                    trial.set_user_attr(name, known.user_attrs[name])
                assert known.values is not None
                study.finish(trial, *known.values, {})
                continue
            error = runner.run(trial, values)
        failed += error is not None
        if error is not None and failed >= FAILURES and not study.trials("COMPLETE", "PRUNED"):
            raise KdxError(
                f"{failed} trials of the search failed and none ended well; the last one: {error}"
            ) from error


def _next(runner: TrialRunner, held: ExitStack) -> Trial | None:
    """A trial that a killed process left, or a new one; None when there are enough. Its lock is held until ``held``
    is closed.
    """
    study, settings = runner.study, runner.study.search.settings
    with study.alone():
        for left in study.trials("RUNNING"):
            if _locked(runner.folder, left.number, held):
                runner.notify(f"trial {left.number}: goes on, for the process that began it is gone")
                return study.again(left)
        begun = counted(study)
        asked = len(study.study.get_trials(deepcopy=False))
        if len(begun) >= settings.trials or _spent(study):
            return None
        if asked >= ASKS * settings.trials:
            runner.notify(
                f"after {asked} points of the space {len(begun)} could be tried: the others are above a limit or are "
                "these again"
            )
            return None
        trial = study.ask()
        if not _locked(runner.folder, trial.number, held):
            raise InUseError(f"trial {trial.number} is at work in another process")
        return trial


def _locked(folder: Path, number: int, held: ExitStack) -> bool:
    try:
        held.enter_context(sole_writer(folder, name=f".{number:04d}.lock"))
    except InUseError:
        return False
    return True


def counted(study: SearchStudy) -> list[FrozenTrial]:
    """The trials that are, or were, trained."""
    return [trial for trial in study.trials() if SAME not in trial.user_attrs]


def _tried(study: SearchStudy, trial: Trial, values: Mapping[str, Any]) -> FrozenTrial | None:
    """The trial that ended with a quality at the same point before."""
    for known in study.trials("COMPLETE"):
        if known.number != trial.number and known.params == dict(values) and SAME not in known.user_attrs:
            return known
    return None


def compute_of(study: SearchStudy) -> Compute:
    """The compute of all trials together; the teacher, trained once for all of them, is not in it."""
    trials = study.trials()
    stages = [Compute.of(stage) for trial in trials for stage in trial.user_attrs.get(COMPUTE, {}).values()]
    return sum(stages, Compute(trials=len(counted(study))))


def _spent(study: SearchStudy) -> bool:
    """Whether the trials have used up the seconds or operations that they may take.

    Raises:
        KdxError: operations are limited, and those of a trial cannot be counted.
    """
    settings, spent = study.search.settings, compute_of(study)
    if settings.compute is not None and spent.flops is None:
        raise KdxError(
            "search.compute: the operations of a trial cannot be counted, so they cannot be limited; give "
            "search.seconds or search.trials alone"
        )
    over = settings.compute is not None and (spent.flops or 0) >= settings.compute
    return over or (settings.seconds is not None and spent.seconds >= settings.seconds)
