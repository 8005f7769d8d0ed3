"""The progress of a run: a bar on a terminal or in a notebook, else a line per epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from kdx.hookspecs import hookimpl

if TYPE_CHECKING:
    from kdx.losses import Losses
    from kdx.training.run import Run

__all__ = ["ProgressBar"]

_REFRESH, _SILENCE = 0.1, 60.0
"""Seconds between two drawings of the bar; seconds after which a log gets a line although the epoch goes on."""


class ProgressBar:
    """Shows how far a run is, its losses, its metrics and the time left; :func:`kdx.fit` has one unless told otherwise.

    On a terminal, and in a notebook that has ``ipywidgets``, it is a bar. Anywhere else (a log file, a pipe, a test) it
    is a line per epoch, and one a minute within epochs that are longer. Of several processes the first shows it. Losses
    are read where they are logged anyway (``log_every``), so no step waits for them; nothing is drawn by a thread of
    its own, so that loader workers can be forked at any time.

    Args:
        console: where to draw; None: standard error, which leaves the output of a script to the script.
        verbose: a line per epoch beside the bar too.
    """

    def __init__(self, console: Console | None = None, *, verbose: bool = False) -> None:
        self.console = console or Console(stderr=True)
        self.verbose = verbose
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._shows = False
        self._drawn = self._wrote = 0.0

    @hookimpl
    def kdx_configure(self, run: Run) -> None:
        """Opens the bar, or says what begins."""
        from accelerate import PartialState  # imports torch

        self._shows = bool(PartialState().is_main_process)
        if not self._shows:
            return
        bar = _has_bar(self.console)
        if bar:
            self._progress = Progress(
                TextColumn("{task.description}", style="bold", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[losses]}", markup=False),
                TextColumn("{task.fields[metrics]}", style="green", markup=False),
                TimeRemainingColumn(),
                console=self.console,
                auto_refresh=False,
                redirect_stdout=sys.stdout.isatty(),  # what goes to a file is not for the terminal
                redirect_stderr=sys.stderr.isatty(),
            )
            self._progress.start()
            self._task = self._progress.add_task(
                f"{_name(run):9}", total=run.total_steps, completed=run.step, losses="", metrics=""
            )
            self._progress.refresh()
        self._wrote = time.monotonic()
        if self.verbose or not bar:
            resumed = f", resumed at step {run.step}" if run.step else ""
            epochs = "" if run.open_ended else f" in {run.epochs} epochs"
            self._write(f"{_name(run)}: {run.total_steps} steps{epochs}{resumed}")

    @hookimpl
    def kdx_step_end(self, run: Run, step: int, losses: Losses) -> None:
        """Moves the bar; the losses are read only where they are logged anyway."""
        if not self._shows:
            return
        now = time.monotonic()
        if self._progress:
            fields: dict[str, Any] = {}
            if run.logs(step):
                fields["losses"] = f"epoch {_of(run, run.epoch + 1)}  {_terms(losses)}"
            if fields or now - self._drawn >= _REFRESH:
                self._progress.update(self._task, completed=step, refresh=True, **fields)
                self._drawn = now
        elif run.logs(step) and now - self._wrote >= _SILENCE:
            self._write(f"  epoch {_of(run, run.epoch + 1)}, step {step} of {run.total_steps}: {_terms(losses)}")

    @hookimpl
    def kdx_epoch_end(self, run: Run, row: Mapping[str, Any]) -> None:
        """Shows the losses and metrics of the epoch."""
        if not self._shows:
            return
        metrics = {key: value for key, value in row.items() if key not in ("epoch", "step")}
        trained = {key: metrics.pop(key) for key in list(metrics) if key.startswith("train/")}
        if len(trained) == 2:
            trained = {"train/loss": trained["train/loss"]}  # of which the only term says nothing new
        found = _numbers(trained), _numbers(metrics, students=len(run.scheme.students))
        if self._progress:
            self._progress.update(self._task, completed=run.step, metrics=found[1] or found[0], refresh=True)
        if self.verbose or not self._progress:
            text = ", ".join(part for part in (*found, f"{run.seconds:.0f} s") if part)
            self._write(f"  epoch {_of(run, run.epoch)}, step {run.step}: {text}")

    @hookimpl
    def kdx_run_end(self, run: Run) -> None:  # the hook's signature
        """Closes the bar."""
        if self._progress:
            self._progress.update(self._task, completed=run.step, refresh=True)
            self._progress.stop()
            self._progress = None

    def _write(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, markup=False, highlight=False)
        self._wrote = time.monotonic()


def _has_bar(console: Console) -> bool:
    """Whether a bar can move there; in a notebook rich draws it with ipywidgets, and warns in every step without."""
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return console.is_interactive and console.file.isatty()  # FORCE_COLOR makes no terminal of a log


def _name(run: Run) -> str:
    return run.folder.name if run.folder else "training"


def _terms(losses: Losses) -> str:
    return " ".join(f"{name} {term.item():.3f}" for name, term in losses.terms.items())


def _numbers(values: Mapping[str, float], *, students: int = 1) -> str:
    """Numbers of a row in words: ``loss 0.412 kd 0.300``; metrics of several students keep the student's name."""
    return " ".join(
        f"{name.partition('/')[2] if students == 1 else name} {value:.3f}" for name, value in values.items()
    )


def _of(run: Run, epoch: int) -> str:
    """An epoch and, unless steps alone decide, how many there will be."""
    return f"{epoch}" if run.open_ended else f"{epoch}/{run.epochs}"
