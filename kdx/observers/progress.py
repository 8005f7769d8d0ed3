"""The progress of a run on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from kdx.hookspecs import hookimpl

if TYPE_CHECKING:
    from kdx.losses import Losses
    from kdx.training.run import Run

__all__ = ["ProgressBar"]


class ProgressBar:
    """One bar per stage: epoch, loss terms, accuracy, time left; a plain line per epoch if ``verbose``.

    Without a terminal no bar is drawn.

    Args:
        console: where to draw.
        verbose: print a line after every evaluation.
    """

    def __init__(self, console: Console, *, verbose: bool = False) -> None:
        self.console = console
        self.verbose = verbose
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._note = ""

    @hookimpl
    def kdx_configure(self, run: Run) -> None:
        """Opens the bar."""
        name = run.folder.name if run.folder else "training"
        self._note = ""
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}", markup=False),
            TextColumn("{task.fields[metrics]}", style="green", markup=False),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._progress.start()
        self._task = self._progress.add_task(
            f"{name:9}", total=run.total_steps, completed=run.step, losses="", metrics=""
        )
        if self.verbose:
            resumed = f", resumed at step {run.step}" if run.step else ""
            epochs = "" if run.open_ended else f" in {run.epochs} epochs"
            self.console.print(f"{name}: {run.total_steps} steps{epochs}{resumed}", markup=False)

    @hookimpl
    def kdx_step_end(self, run: Run, step: int, losses: Losses) -> None:
        """Moves the bar; the losses are read only where they are logged anyway."""
        if self._progress:
            fields: dict[str, Any] = {}
            if run.logs(step):
                terms = " ".join(f"{name} {term.item():.3f}" for name, term in losses.terms.items())
                fields["losses"] = f"epoch {_of(run, run.epoch + 1)}  {terms}"
            self._progress.update(self._task, completed=step, **fields)

    @hookimpl
    def kdx_epoch_end(self, run: Run, row: Mapping[str, Any]) -> None:
        """Shows the metrics."""
        metrics = {name: value for name, value in row.items() if name not in ("epoch", "step")}
        shown = " ".join(f"{name.rpartition('/')[2]} {value:.3f}" for name, value in metrics.items())
        if self._progress:
            self._progress.update(self._task, metrics=shown)
        if self.verbose:
            self.console.print(f"  epoch {_of(run, run.epoch)}, step {run.step}: {shown}", markup=False)

    @hookimpl
    def kdx_run_end(self, run: Run) -> None:  # the hook's signature
        """Closes the bar."""
        if self._progress:
            self._progress.stop()
            self._progress = None


def _of(run: Run, epoch: int) -> str:
    """An epoch and, unless steps alone decide, how many there will be."""
    return f"{epoch}" if run.open_ended else f"{epoch}/{run.epochs}"
