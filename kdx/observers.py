"""Who watches a run: the hooks of installed plugins and the observers given to ``fit``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pluggy

from kdx import hookspecs
from kdx.errors import PluginError
from kdx.hookspecs import PROJECT, hookimpl
from kdx.registry import default_plugins

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

    from kdx.losses import Losses
    from kdx.run_state import Run

__all__ = ["MetricsLog", "Observers", "TensorBoardLog"]

_EVENTS = ("kdx_configure", "kdx_step_end", "kdx_evaluated", "kdx_run_end")


class Observers:
    """Tells plugins first, in the order of their names, then the given observers in theirs, what happens in one run.

    An observer that raises ends the run with a `PluginError` that names it; :func:`kdx.fit` writes a checkpoint first.
    Of a run's end everyone is told, whoever raises; an error there never hides the one that ended the run.

    Args:
        extra: objects (or modules) with methods marked by ``kdx.hookimpl``.

    Raises:
        PluginError: an observer implements an unknown hook, asks for an argument the hook does not have, or is a
            wrapper around other observers.
    """

    def __init__(self, extra: Iterable[object]) -> None:
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
                        "after the other and cannot wrap each other, take wrapper=True out"
                    )

    def configure(self, run: Run) -> None:
        """The run is about to start."""
        self._tell("kdx_configure", run=run)

    def step_end(self, run: Run, step: int, losses: Losses) -> None:
        """An optimizer step is done."""
        self._tell("kdx_step_end", run=run, step=step, losses=losses)

    def evaluated(self, run: Run, metrics: Mapping[str, Any]) -> None:
        """The students were evaluated."""
        self._tell("kdx_evaluated", run=run, metrics=metrics)

    def run_end(self, run: Run) -> None:
        """The run has ended, for whatever reason."""
        failed: list[PluginError] = []
        ended_by = sys.exception()
        for implementation in self._in_order("kdx_run_end"):
            try:
                self._call(implementation, "kdx_run_end", {"run": run})
            except PluginError as error:
                failed.append(error)
        if failed and ended_by is None:
            raise failed[0]
        for each in failed:
            assert ended_by is not None
            ended_by.add_note(str(each))

    def _tell(self, event: str, **arguments: Any) -> None:
        for implementation in self._in_order(event):
            self._call(implementation, event, arguments)

    def _in_order(self, event: str) -> list[Any]:
        return list(reversed(getattr(self._manager.hook, event).get_hookimpls()))

    def _call(self, implementation: Any, event: str, arguments: Mapping[str, Any]) -> None:
        try:
            implementation.function(*(arguments[name] for name in implementation.argnames))
        except PluginError:
            raise
        except Exception as error:
            raise PluginError(
                f"observer {implementation.plugin_name!r} failed in {event}: {type(error).__name__}: {error}"
            ) from error


class MetricsLog:
    """Appends one JSON object per logged step and evaluation to ``metrics.jsonl`` of the run's folder.

    When a run is resumed, rows after its checkpoint are dropped, so that the file ends as that of an unbroken run.
    """

    name = "metrics.jsonl"

    def __init__(self) -> None:
        self._file: TextIO | None = None

    @hookimpl
    def kdx_configure(self, run: Run) -> None:
        """Opens the file."""
        if run.folder is None:
            return
        path = run.folder / self.name
        kept = [row for row in read_metrics(path) if row["step"] <= run.step] if run.step else []
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a", buffering=1)

    @hookimpl
    def kdx_step_end(self, run: Run, step: int, losses: Losses) -> None:
        """Writes the losses of a logged step."""
        if self._file and (run.logs(step) or run.extra):
            row = {"step": step, "epoch": run.epoch, "lr": run.learning_rate, "loss": losses.total.item()}
            row |= {f"term/{name}": term.item() for name, term in losses.terms.items()} | run.extra
            self._file.write(json.dumps(row) + "\n")

    @hookimpl
    def kdx_evaluated(self, run: Run, metrics: Mapping[str, Any]) -> None:
        """Writes the metrics of an evaluation."""
        if self._file:
            row = {"step": run.step, "epoch": run.epoch}
            self._file.write(json.dumps(row | {f"eval/{name}": value for name, value in metrics.items()}) + "\n")

    @hookimpl
    def kdx_run_end(self, run: Run) -> None:
        """Closes the file."""
        if self._file:
            self._file.close()
            self._file = None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; a last line cut off by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class TensorBoardLog:
    """Writes the same numbers as TensorBoard events under ``tensorboard/`` of the run's folder."""

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None

    @hookimpl
    def kdx_configure(self, run: Run) -> None:
        """Opens the writer."""
        if run.folder is not None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writer = SummaryWriter(run.folder / "tensorboard", purge_step=run.step + 1 if run.step else None)

    @hookimpl
    def kdx_step_end(self, run: Run, step: int, losses: Losses) -> None:
        """Writes the losses of a logged step."""
        if self._writer and (run.logs(step) or run.extra):
            numbers = {"loss": losses.total.item(), "lr": run.learning_rate} | run.extra
            numbers |= {f"term/{name}": term.item() for name, term in losses.terms.items()}
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step)

    @hookimpl
    def kdx_evaluated(self, run: Run, metrics: Mapping[str, Any]) -> None:
        """Writes the metrics of an evaluation."""
        if self._writer:
            for name, value in metrics.items():
                if math.isfinite(value):
                    self._writer.add_scalar(f"eval/{name}", value, run.step)

    @hookimpl
    def kdx_run_end(self, run: Run) -> None:
        """Closes the writer."""
        if self._writer:
            self._writer.close()
            self._writer = None
