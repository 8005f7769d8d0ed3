"""Who watches a run: the hooks of installed plugins and the observers given to ``fit``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

from kdx import hookspecs
from kdx.blame import origin_of
from kdx.errors import FileError, PluginError
from kdx.hookspecs import PROJECT
from kdx.registry import default_plugins

if TYPE_CHECKING:
    from kdx.losses import Losses
    from kdx.training.run import Run

__all__ = ["Observers"]

_EVENTS = ("kdx_configure", "kdx_step_end", "kdx_epoch_end", "kdx_run_end")


class Observers:
    """Notifies the observers of one run: plugins first, in the order of their names, then the given ones in theirs.

    An observer that raises ends the run with a `PluginError` that names it, once the others have been notified of the
    same event; :func:`kdx.fit` writes a checkpoint first. An error at the run's end never hides the one that ended it.

    Args:
        extra: objects (or modules) with methods marked by ``kdx.hookimpl``.

    Raises:
        PluginError: an observer implements an unknown hook, asks for an argument the hook does not have, or is a
            wrapper around other observers.
    """

    def __init__(self, extra: Iterable[object]) -> None:
        self._handled = sys.exception()  # of the caller, if it makes its run within an except clause
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        installed = default_plugins().manager
        watching = {
            implementation.plugin_name: implementation.plugin
            for event in _EVENTS
            for implementation in getattr(installed.hook, event).get_hookimpls()
        }
        # pluggy calls the last registered first
        for position, observer in reversed(list(enumerate(extra, start=1))):
            self._register(observer, f"{type(observer).__name__} (number {position})")
        for name in sorted(watching, reverse=True):
            self._register(watching[name], name)

    def _register(self, plugin: object, name: str) -> None:
        try:
            self._manager.register(plugin, name)
        except pluggy.PluginValidationError as error:
            raise PluginError(f"observer {name!r} cannot be used: {error}") from error
        for event in _EVENTS:
            for implementation in getattr(self._manager.hook, event).get_hookimpls():
                if implementation.hookwrapper or implementation.wrapper:
                    raise PluginError(
                        f"observer {implementation.plugin_name!r} is a wrapper in {event}; observers are told one "
                        "after the other and cannot wrap each other, leave out wrapper=True"
                    )

    def configure(self, run: Run) -> None:
        """Called when the run is about to start."""
        self._tell("kdx_configure", run=run)

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
        except (PluginError, FileError) as error:
            if ended_by is None or ended_by is self._handled:
                raise
            for note in (str(error), *getattr(error, "__notes__", ())):
                ended_by.add_note(note)

    def _tell(self, event: str, **arguments: Any) -> None:
        failed: list[PluginError | FileError] = []
        for implementation in reversed(getattr(self._manager.hook, event).get_hookimpls()):
            try:
                self._call(implementation, event, arguments)
            except (PluginError, FileError) as error:
                failed.append(error)
        if failed:
            for each in failed[1:]:
                failed[0].add_note(str(each))
            raise failed[0]

    def _call(self, implementation: Any, event: str, arguments: Mapping[str, Any]) -> None:
        try:
            implementation.function(*(arguments[name] for name in implementation.argnames))
        except (PluginError, FileError):  # a file that cannot be written is no fault of who writes it
            raise
        except Exception as error:
            name, origin = implementation.plugin_name, origin_of(implementation.plugin)
            shown = f" of {origin}" if origin and origin != name else ""
            raise PluginError(f"observer {name!r}{shown} failed in {event}: {type(error).__name__}: {error}") from error
