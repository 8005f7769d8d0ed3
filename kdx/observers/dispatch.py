"""Who watches a run: the hooks of installed plugins and the observers given to ``fit``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pluggy

from kdx import hookspecs
from kdx.blame import origin_of
from kdx.errors import FileError, PluginError, StopRun, nearest
from kdx.hookspecs import PROJECT
from kdx.registry import default_plugins

if TYPE_CHECKING:
    from torch import nn

    from kdx.artifact import FinishedStudent
    from kdx.batch import Batch
    from kdx.losses import Losses
    from kdx.training.run import Run

__all__ = ["Observers", "check_observers", "progress_beside"]

_EVENTS = ("kdx_configure", "kdx_before_evaluate", "kdx_step_end", "kdx_epoch_end", "kdx_run_end")
_HOOKS = (*_EVENTS, "kdx_finalise")
"""Those of a run, and the one that a stage of an experiment asks when its student is trained."""

_MEANT = (PluginError, FileError, StopRun)
"""Exceptions of an observer that go on as they are."""

_ELSEWHERE = ("on_", "training_step", "set_trainer", "set_model", "state_dict")
"""How the methods of callbacks of other frameworks begin: Keras, Lightning, Transformers."""


def check_observers(observers: object) -> None:
    """Checks that every observer can be told of something.

    Raises:
        TypeError: no sequence, or something in it that is no observer: a function, a class, a string, a callback of
            another framework, an object without a marked method; the message says what to write.
    """
    if isinstance(observers, str) or not isinstance(observers, Sequence):
        raise TypeError(f"observers: expected a list of objects, got {observers!r}; write observers=[...]")
    for position, observer in enumerate(observers, start=1):
        hooks = [name for name in _HOOKS if _is_marked(observer, name)]
        if hooks and not inspect.isclass(observer):
            continue
        what = f"observers: number {position}, {_shown(observer)},"
        if hooks:
            raise TypeError(f"{what} is a class; give an object of it, {observer.__name__}(...)")
        for name in _HOOKS:
            if callable(getattr(observer, name, None)):
                raise TypeError(f"{what} has a method {name} that is not marked; write @kdx.hookimpl above it")
        found = [name for name in dir(observer) if name.startswith(_ELSEWHERE) and callable(getattr(observer, name))]
        foreign = f"its {found[0]} belongs to another framework and is never called here: " if found else ""
        raise TypeError(
            f"{what} is no observer: {foreign}an observer is an object with at least one of the methods "
            f"{', '.join(_HOOKS)}, marked by @kdx.hookimpl, as\n"
            "class Epochs:\n    @kdx.hookimpl\n    def kdx_epoch_end(self, run, row):\n        print(row)\n"
            "and observers=[Epochs()]"
        )


def progress_beside(observers: Sequence[object], wanted: bool) -> list[object]:
    """One observer that shows progress; none where there is one already, or none is wanted."""
    if not wanted:
        return []
    from kdx.observers.progress import ProgressBar  # imports rich

    return [] if any(isinstance(observer, ProgressBar) for observer in observers) else [ProgressBar()]


def _is_marked(observer: object, name: str) -> bool:
    return hasattr(getattr(observer, name, None), f"{PROJECT}_impl")


def _marked_methods(scheme: object) -> dict[str, Any]:
    """The methods of a scheme that are told of its run; the scheme itself has other attributes, which none may read.

    Raises:
        PluginError: a method is named as a hook that no run has, or as one of a run and is not marked.
    """
    named = [name for name in dir(type(scheme)) if name.startswith(f"{PROJECT}_") and callable(getattr(scheme, name))]
    for name in named:
        what = f"scheme {type(scheme).__name__} has a method {name}"
        if not _is_marked(scheme, name) and name in _HOOKS:
            raise PluginError(f"{what} that is not marked; write @kdx.hookimpl above it")
        if _is_marked(scheme, name) and name not in _HOOKS:
            raise PluginError(f"{what}, and a run has no such hook; {nearest(name, _HOOKS)}")
    return {name: getattr(scheme, name) for name in named if name in _HOOKS}


def _shown(observer: object) -> str:
    return observer.__name__ if inspect.isclass(observer) or inspect.isroutine(observer) else repr(observer)[:80]


class Observers:
    """Notifies the observers of one run: its scheme, then plugins in the order of their names, then the given ones.

    An observer that raises ends the run with a `PluginError` that names it, once the others have been notified of the
    same event; :func:`kdx.fit` writes a checkpoint first. :class:`kdx.StopRun` ends it in the same way as what it is,
    unless another observer failed. An error at the run's end never hides the one that ended it.

    Args:
        given: objects (or modules) with methods marked by ``kdx.hookimpl``; messages number them.
        own: those of the run itself, told before the given ones.
        scheme: that is trained; it is told first of what its marked methods are for.

    Raises:
        PluginError: an observer implements an unknown hook, asks for an argument the hook does not have, or is a
            wrapper around other observers.
    """

    def __init__(self, given: Sequence[object], own: Sequence[object] = (), scheme: object = None) -> None:
        self._handled = sys.exception()  # of the caller, if it makes its run within an except clause
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        installed = default_plugins().manager
        watching = {
            implementation.plugin_name: implementation.plugin
            for event in _HOOKS
            for implementation in getattr(installed.hook, event).get_hookimpls()
        }
        # pluggy calls the last registered first
        for position, observer in reversed(list(enumerate(given, start=1))):
            self._register(observer, f"{type(observer).__name__} (number {position})")
        for observer in reversed(own):
            self._register(observer, type(observer).__name__)
        for name in sorted(watching, reverse=True):
            self._register(watching[name], name)
        if methods := _marked_methods(scheme):
            self._register(SimpleNamespace(**methods), f"scheme {type(scheme).__name__}")

    def _register(self, plugin: object, name: str) -> None:
        try:
            self._manager.register(plugin, name)
        except ValueError as error:  # the same object twice
            raise PluginError(f"observer {name!r} cannot be used: it was given twice; give it once") from error
        except pluggy.PluginValidationError as error:
            raise PluginError(f"observer {name!r} cannot be used: {error}") from error
        for event in _HOOKS:
            for implementation in getattr(self._manager.hook, event).get_hookimpls():
                if implementation.hookwrapper or implementation.wrapper:
                    raise PluginError(
                        f"observer {implementation.plugin_name!r} is a wrapper in {event}; observers are told one "
                        "after the other and cannot wrap each other, leave out wrapper=True"
                    )

    def configure(self, run: Run) -> None:
        """Called when the run is about to start."""
        self._tell("kdx_configure", run=run)

    def before_evaluate(self, run: Run, name: str, student: nn.Module, batches: Callable[[], Iterable[Batch]]) -> None:
        """Called before a student is evaluated after an epoch, and before it is exported."""
        self._tell("kdx_before_evaluate", run=run, name=name, student=student, batches=batches)

    def step_end(self, run: Run, step: int, losses: Losses) -> None:
        """Called after an optimizer step."""
        self._tell("kdx_step_end", run=run, step=step, losses=losses)

    def epoch_end(self, run: Run, row: Mapping[str, Any]) -> None:
        """Called after an epoch and its evaluation, if there is one."""
        self._tell("kdx_epoch_end", run=run, row=row)

    def run_end(self, run: Run) -> None:
        """Called when the run has ended, for whatever reason."""
        ended_by = sys.exception()
        try:
            self._tell("kdx_run_end", run=run)
        except _MEANT as error:
            if ended_by is None or ended_by is self._handled:
                raise
            for note in (str(error), *getattr(error, "__notes__", ())):
                ended_by.add_note(note)

    def finalise(self, stage: FinishedStudent, student: Callable[[], nn.Module]) -> list[tuple[str, Any]]:
        """Asks for artifacts of a finished stage; the name of each observer that was asked, and what it gave.

        Args:
            stage: that is finished.
            student: makes a copy of its student; each observer gets its own.

        Raises:
            PluginError: one failed.
            StopRun: one stopped the run.
        """
        return [
            (each.plugin_name, self._call(each, "kdx_finalise", {"stage": stage, "student": student()}))
            for each in reversed(self._manager.hook.kdx_finalise.get_hookimpls())
        ]

    def _tell(self, event: str, **arguments: Any) -> None:
        failed: list[PluginError | FileError | StopRun] = []
        for implementation in reversed(getattr(self._manager.hook, event).get_hookimpls()):
            try:
                self._call(implementation, event, arguments)
            except _MEANT as error:
                if isinstance(error, StopRun):
                    error.step, error.epoch = arguments["run"].step, arguments["run"].epoch
                failed.append(error)
        if failed:
            failed.sort(key=lambda error: isinstance(error, StopRun))  # a failure first
            for each in failed[1:]:
                failed[0].add_note(str(each))
            raise failed[0]

    def _call(self, implementation: Any, event: str, arguments: Mapping[str, Any]) -> Any:
        try:
            return implementation.function(*(arguments[name] for name in implementation.argnames))
        except _MEANT:  # a file that cannot be written is no fault of who writes it
            raise
        except Exception as error:
            owner = getattr(implementation.function, "__self__", implementation.plugin)
            name, origin = implementation.plugin_name, origin_of(owner)
            shown = f" of {origin}" if origin and origin != name else ""
            raise PluginError(f"observer {name!r}{shown} failed in {event}: {type(error).__name__}: {error}") from error
