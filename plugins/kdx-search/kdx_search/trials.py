"""One trial of a search: a point of the space distilled for a short time and judged on validation rows."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdx import hookimpl
from kdx.assistants import GapWarning, NoGainWarning, WeakTeacherWarning
from kdx.errors import FileError, Interrupted, InUseError, KdxError, StopRun
from kdx.experiment import Experiment, Quality
from kdx_search.pricing import STUDENT, Prices, shown_cost
from kdx_search.study import BY_EPOCH, COMPUTE, COST, SearchStudy, behind

if TYPE_CHECKING:
    from optuna.trial import Trial

    from kdx.training import Run

__all__ = ["TrialRunner"]


@dataclass(slots=True)
class TrialRunner:
    """Runs trials, each as an experiment of its own that reads no test row.

    Args:
        study: is told how they end.
        prices: says what students cost.
        folder: of the trials; each has one in it while it runs.
        teachers: where trained teachers are kept, so that one is trained once for all trials.
        quality: what they are judged by.
        observers: see :func:`kdx.fit`; they watch every stage of every trial.
        notify: called with a sentence about each trial.
        keep: whether the folders of ended trials stay.
        store: the teacher's outputs that all trials learn from, None where each runs its teacher.
    """

    study: SearchStudy
    prices: Prices
    folder: Path
    teachers: Path
    quality: Quality
    observers: Sequence[object] = ()
    notify: Callable[[str], object] = lambda _: None
    keep: bool = False
    store: Path | None = None

    def run(self, trial: Trial, values: Mapping[str, Any]) -> Exception | None:
        """Runs one trial to its end and tells the study; one that was interrupted goes on from its checkpoint.

        Returns:
            The error of a trial that cannot run, None for one that ended well, fell behind or is above a limit.

        Raises:
            Interrupted: a signal came; the trial stays open.
            FileError: the disk is full, or a folder is gone; the trial stays open.
        """
        name, costs = f"trial {trial.number}", self.prices.of(values)
        if costs is not None and (refusal := self.prices.refusal(values, costs)):
            self.study.refuse(trial, refusal, self.prices.excess(values, costs))
            return None
        place = self.folder / f"{trial.number:04d}"
        watch = _Watch(trial, self, dict(values), costs)
        try:
            result = self._distilled(place, values, watch)
        except StopRun as stop:
            if watch.refusal is not None:
                self.study.refuse(trial, watch.refusal, self.prices.excess(values, watch.costs or {}))
            else:
                self.study.end(trial, "PRUNED", str(stop))
                self.notify(f"{name}: ended, {stop}; {_shown(values)}")
            self._forget(place)
            return None
        except (Interrupted, FileError, InUseError):
            raise
        except (KdxError, ValueError, TypeError, RuntimeError) as error:
            self.study.end(trial, "FAIL", f"{type(error).__name__}: {error}")
            self.notify(f"{name}: cannot run, {error}; {_shown(values)}")
            self._forget(place)
            return error
        value = float(result["validation"][self.quality.metric])
        costs = watch.costs
        assert costs is not None
        if not math.isfinite(value):
            self.study.end(trial, "FAIL", f"its {self.quality.metric} is {value}")
        else:
            kind = self.prices.kinds[0]
            trial.set_user_attr(COST, costs[kind])
            self.study.finish(trial, value, costs[kind], self.prices.excess(values, costs))
            shown = f"{self.quality.metric_label} {self.quality.text(value)}"
            self.notify(f"{name}: {shown}, {shown_cost(kind, costs[kind])}; {_shown(values)}")
        self._forget(place)
        return None

    def _distilled(self, place: Path, values: Mapping[str, Any], watch: _Watch) -> Mapping[str, Any]:
        search = self.study.search
        with warnings.catch_warnings():
            for category in (WeakTeacherWarning, GapWarning, NoGainWarning):
                warnings.simplefilter("ignore", category)  # the chosen student's run says them
            experiment = Experiment(
                search.trial(values, self.store),
                place,
                [watch, *self.observers],
                teachers=self.teachers,
                test=False,
                plugins=search.plugins,
                trust=search.trust,
            )
            watch.example = lambda: experiment.assembly.example
            summary = experiment.run(resume=True)
        if watch.costs is None:  # it was finished before this process began
            watch.price(experiment.assembly.model(STUDENT))
        found: Mapping[str, Any] = summary["stages"][STUDENT]
        return found

    def _forget(self, place: Path) -> None:
        if not self.keep:
            shutil.rmtree(place, ignore_errors=True)


class _Watch:
    """Watches the stages of one trial: ends it above a limit or behind the others, and counts what it computes."""

    def __init__(
        self, trial: Trial, runner: TrialRunner, values: dict[str, Any], costs: dict[str, float] | None
    ) -> None:
        self.trial, self.runner, self.values = trial, runner, values
        self.costs = costs
        self.refusal: str | None = None
        self.example: Callable[[], Any] = lambda: None

    def price(self, student: Any) -> None:
        """Measures the student, if its cost was not known before."""
        if self.costs is None:
            self.costs = self.runner.prices.measured(student, self.example())

    @hookimpl
    def kdx_configure(self, run: Run) -> None:
        """Refuses a student above a limit before its first step."""
        from optuna import TrialPruned

        if not _is_student(run):
            return
        self.price(next(iter(run.scheme.students.values())))
        assert self.costs is not None
        self.trial.set_user_attr(COST, self.costs[self.runner.prices.kinds[0]])
        self.refusal = self.runner.prices.refusal(self.values, self.costs)
        if self.refusal is not None:
            raise StopRun(self.refusal) from TrialPruned()

    @hookimpl
    def kdx_epoch_end(self, run: Run) -> None:
        """Tells the study the quality after the epoch, and ends a trial that is behind."""
        from optuna import TrialPruned

        if not _is_student(run):
            return
        study, quality = self.runner.study, self.runner.quality
        key = f"{next(iter(run.scheme.students))}/{quality.metric}"
        by_epoch = [float(row[key]) for row in run.history]
        self.trial.set_user_attr(BY_EPOCH, by_epoch)
        assert self.costs is not None
        cost = self.costs[self.runner.prices.kinds[0]]
        others = study.trials("COMPLETE")
        better = quality.higher_is_better
        if (
            study.search.settings.prune
            and run.goes_on
            and behind(by_epoch[-1], len(by_epoch), cost, others, higher_is_better=better)
        ):
            reason = f"behind the median of trials that cost no more after epoch {len(by_epoch)}"
            raise StopRun(reason) from TrialPruned()

    @hookimpl
    def kdx_run_end(self, run: Run) -> None:
        """Adds what the stage computed."""
        if run.stage is None or run.stage.role == "teacher":  # trained once for all trials
            return
        known = dict(self.trial.user_attrs.get(COMPUTE, {}))
        self.trial.set_user_attr(COMPUTE, known | {run.stage.name: run.compute.as_dict()})


def _is_student(run: Run) -> bool:
    return run.stage is not None and run.stage.name == STUDENT


def _shown(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
    )
