"""The Optuna study of a search: one file that several processes write, and that a killed one leaves whole."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdx.authoring import named, taking_turns
from kdx.errors import DamagedError, KdxError, RecipeError
from kdx_search.recipe_space import Range, Spec
from kdx_search.search_recipe import SearchRecipe

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study as OptunaStudy
    from optuna.trial import FrozenTrial, Trial

__all__ = ["LEAST_OPTUNA", "SearchStudy", "behind", "check_optuna"]

LEAST_OPTUNA = "5.0"
NAME = "kdx-search"
IDENTITY, BY_EPOCH, COST, REFUSED, COMPUTE = "identity", "quality_by_epoch", "cost", "refused", "compute"
"""Attributes of the study and of its trials."""
PEERS = 4
"""Finished trials that a trial is compared with, at least, before it may be ended as behind."""
STARTUP = 8
"""Trials that are drawn at random before the sampler learns from them."""
_NO_JOURNAL = (ValueError, LookupError, TypeError, AttributeError, AssertionError)
"""The exceptions that Optuna raises over a file that is no journal."""


def check_optuna() -> None:
    """Checks that Optuna is there and new enough.

    Raises:
        KdxError: it is missing or too old; says what to install.
    """
    remedy = f"pip install 'optuna>={LEAST_OPTUNA}'"
    try:
        version = metadata.version("optuna")
    except metadata.PackageNotFoundError:
        raise KdxError(f"kdx search needs Optuna, which is not installed: {remedy}") from None
    if [int(part) for part in version.split(".")[:2] if part.isdigit()] < [
        int(each) for each in LEAST_OPTUNA.split(".")
    ]:
        raise KdxError(f"kdx search needs Optuna {LEAST_OPTUNA} or newer, and {version} is installed: {remedy}")


def behind(quality: float, epoch: int, cost: float, others: list[FrozenTrial], *, higher_is_better: bool) -> bool:
    """Whether a trial falls behind: its quality is below the median, after as many epochs, of trials that cost no more.

    Optuna's own pruners compare one objective and refuse studies of several. Compared with all trials a cheap student
    would be ended for being small; among those that cost no more a student that is worse than half of them will hardly
    come onto the front of quality and cost.

    Args:
        quality: of the trial after the epoch.
        epoch: counted from 1.
        cost: of the trial's student.
        others: finished trials.
        higher_is_better: whether more of the quality is.
    """
    peers = [
        trial.user_attrs[BY_EPOCH][epoch - 1]
        for trial in others
        if trial.user_attrs.get(COST, float("inf")) <= cost and len(trial.user_attrs.get(BY_EPOCH, ())) >= epoch
    ]
    if len(peers) < PEERS:
        return False
    median = statistics.median(peers)
    return quality < median if higher_is_better else quality > median


class SearchStudy:
    """The trials of a search: asked for, told and counted.

    The file is Optuna's journal: a line of JSON for each change, written under a lock of the system that ends with its
    process. It holds numbers and labels alone; what they stand for is in the recipe, so that no study file decides
    what runs.

    Args:
        path: of the file.
        search: what is searched.
        higher_is_better: whether more of the quality is.
        notify: called with a sentence when another process is waited for.

    Raises:
        KdxError: see :func:`check_optuna`.
        RecipeError: the file is the study of another search; the keys that differ are named.
        DamagedError: the file is no study, or damaged.
    """

    def __init__(
        self,
        path: Path,
        search: SearchRecipe,
        *,
        higher_is_better: bool = True,
        notify: Callable[[str], object] = lambda _: None,
    ) -> None:
        check_optuna()
        self.path, self.search, self.higher_is_better, self.notify = path, search, higher_is_better, notify
        with self.alone("the study"):
            _mend(path)
            self.study = self._opened()

    @contextmanager
    def alone(self, what: str = "the next trial") -> Iterator[None]:
        """Keeps the other processes of the search from asking at the same time."""
        with taking_turns(self.path.with_name(f".{self.path.name}.ask"), self.notify, what):
            yield

    def trials(self, *states: str) -> list[FrozenTrial]:
        """The trials in some states, as ``COMPLETE``, ``PRUNED``, ``RUNNING`` and ``FAIL``; all without one.

        Those that were refused before training are none.
        """
        found = self.study.get_trials(deepcopy=False)
        return [each for each in found if REFUSED not in each.user_attrs and (not states or each.state.name in states)]

    def refused(self) -> list[FrozenTrial]:
        """The points that were above a limit, so that nothing was trained."""
        return [each for each in self.study.get_trials(deepcopy=False) if REFUSED in each.user_attrs]

    def ask(self) -> Trial:
        """A new trial at the point that the sampler wants next; :meth:`values` gives the point."""
        number = len(self.study.get_trials(deepcopy=False))
        with _quiet():
            self.study.sampler = self._sampler(number)
            return self.study.ask()

    def again(self, trial: FrozenTrial) -> Trial:
        """A trial that a killed process left."""
        from optuna.trial import Trial

        with _quiet():
            self.study.sampler = self._sampler(trial.number)
            return Trial(self.study, trial._trial_id)

    def values(self, trial: Trial) -> dict[str, Any]:
        """The point of a trial, chosen by the sampler where it is not yet.

        Raises:
            RecipeError: the study has a value that the space has not.
        """
        with _quiet():
            return self.search.space.point(lambda name, spec: _suggested(trial, name, spec))

    def point(self, trial: FrozenTrial) -> dict[str, Any]:
        """The point of a trial that has ended, checked against the space."""
        return self.search.space.point(lambda name, spec: trial.params.get(name))

    def refuse(self, trial: Trial, reason: str, excess: Mapping[str, float]) -> None:
        """Ends a trial before training, for its student is above a limit; the sampler learns by how much."""
        trial.set_user_attr(REFUSED, reason)
        for kind, over in excess.items():
            trial.set_constraint(kind, over)
        self._tell(trial, None, "PRUNED")

    def finish(self, trial: Trial, quality: float, cost: float, excess: Mapping[str, float]) -> None:
        """Ends a trial with its quality and its cost."""
        for kind, over in excess.items():
            trial.set_constraint(kind, over)
        self._tell(trial, [quality, cost], "COMPLETE")

    def end(self, trial: Trial, state: str, reason: str) -> None:
        """Ends a trial without a value: ``PRUNED`` for one that fell behind, ``FAIL`` for one that cannot run."""
        trial.set_user_attr("reason", reason)
        self._tell(trial, None, state)

    def _tell(self, trial: Trial, values: list[float] | None, state: str) -> None:
        from optuna.trial import TrialState

        with _quiet():
            self.study.tell(trial, values, state=TrialState[state])

    def _sampler(self, number: int) -> BaseSampler:
        """A sampler for one trial: what it draws follows from the seed, the trial's number and the trials before."""
        from optuna.samplers import RandomSampler, TPESampler

        seed = (int(self.search.sections.get("seed") or 0) * 100_003 + number) % 2**32
        if self.search.settings.sampler == "random":
            return RandomSampler(seed=seed)
        return TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=STARTUP)

    def _opened(self) -> OptunaStudy:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        directions = ["maximize" if self.higher_is_better else "minimize", "minimize"]
        with _quiet():
            new = not self.path.exists() or self.path.stat().st_size == 0
            try:
                with named(self.path, "opened"):
                    storage = JournalStorage(JournalFileBackend(str(self.path), lock_obj=_SystemLock(self.path)))
                if new:
                    study = optuna.create_study(storage=storage, study_name=NAME, directions=directions)
                    study.set_user_attr(IDENTITY, self.search.identity)
                    return study
                study = optuna.load_study(storage=storage, study_name=NAME)
            except _NO_JOURNAL as error:
                raise DamagedError(
                    f"{self.path} is no study of kdx search, or damaged ({type(error).__name__}: {error}); put back "
                    "what was there, or take another folder"
                ) from error
        if changed := _differences(study.user_attrs.get(IDENTITY) or {}, self.search.identity):
            raise RecipeError(
                f"the study in {self.path} is of another search ({'; '.join(changed[:5])}); go on with the same one, "
                "or take another folder"
            )
        if [each.name.lower() for each in study.directions] != directions:
            raise DamagedError(f"{self.path}: its objectives are not quality and cost; take another folder")
        return study


def _suggested(trial: Trial, name: str, spec: Spec) -> Any:
    if not isinstance(spec, Range):
        return trial.suggest_categorical(name, list(spec.options))
    if spec.whole:
        return trial.suggest_int(name, int(spec.low), int(spec.high), step=int(spec.step or 1), log=spec.log)
    return trial.suggest_float(name, spec.low, spec.high, step=spec.step, log=spec.log)


class _SystemLock:
    """The lock of the journal, as Optuna calls it: that of the system, which ends with its process.

    Optuna's own is a file, which a killed process leaves behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f".{path.name}.write")
        self._held = ExitStack()

    def acquire(self) -> bool:
        self._held.enter_context(taking_turns(self.path, lambda _: None, "the study"))
        return True

    def release(self) -> None:
        self._held.close()


def _mend(path: Path) -> None:
    """Cuts off a last line that a killed process did not finish, to which the next one would be appended."""
    if not path.exists():
        return
    with named(path), path.open("rb+") as file:
        text = file.read()
        if text and not text.endswith(b"\n"):
            file.truncate(text.rfind(b"\n") + 1)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Keys whose values differ, as ``search.epochs: 2 -> 3``."""
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += _differences(before, after, f"{path}{key}.")
        elif json.dumps(before) != json.dumps(after):
            found.append(f"{path}{key}: {before!r} -> {after!r}")
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Optuna from logging its own lines and from saying that an argument may change."""
    import warnings

    import optuna
    from optuna.exceptions import ExperimentalWarning

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
