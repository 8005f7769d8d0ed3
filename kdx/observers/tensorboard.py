"""TensorBoard events of a run."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from kdx.files import named
from kdx.hookspecs import hookimpl
from kdx.observers.epoch_row import logged

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

    from kdx.losses import Losses
    from kdx.training.run import Run

__all__ = ["TensorBoardLog"]

NAME = "tensorboard"


class TensorBoardLog:
    """Writes losses and metrics as TensorBoard events under ``tensorboard/`` of the run's folder."""

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None
        self._quiet = ExitStack()

    @hookimpl
    def kdx_configure(self, run: Run) -> None:
        """Opens the writer."""
        if run.folder is not None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._quiet.enter_context(_quiet_thread())
            with _named(run):
                self._writer = SummaryWriter(run.folder / NAME, purge_step=run.step + 1 if run.step else None)

    @hookimpl
    def kdx_step_end(self, run: Run, step: int, losses: Losses) -> None:
        """Writes the losses of a logged step."""
        if self._writer and (run.logs(step) or losses.measured):
            numbers = {"loss": losses.total.item(), "lr": run.learning_rate} | losses.measured
            numbers |= {f"term/{name}": term.item() for name, term in losses.terms.items()}
            with _named(run):
                for name, value in numbers.items():
                    self._writer.add_scalar(name, value, step)

    @hookimpl
    def kdx_epoch_end(self, run: Run, row: Mapping[str, Any]) -> None:
        """Writes the losses and metrics of an epoch."""
        if self._writer:
            with _named(run):
                for name, value in logged(row).items():
                    if math.isfinite(value):
                        self._writer.add_scalar(name, value, run.step)

    @hookimpl
    def kdx_run_end(self, run: Run) -> None:
        """Closes the writer."""
        writer, self._writer = self._writer, None
        with self._quiet:
            if writer:
                with _named(run):
                    writer.close()


@contextmanager
def _quiet_thread() -> Iterator[None]:
    """Keeps TensorBoard's thread from printing an error of a file: its next call in this thread raises it again."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        theirs = type(failed.thread).__module__.startswith("tensorboard.")
        if not (theirs and issubclass(failed.exc_type, OSError)):
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _named(run: Run) -> AbstractContextManager[None]:
    """Lets errors of files name the folder, as those of TensorBoard's own thread do not."""
    assert run.folder is not None
    return named(run.folder / NAME, "written")
