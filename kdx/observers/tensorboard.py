"""TensorBoard events of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdx.hookspecs import hookimpl
from kdx.observers.epoch_row import logged

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

    from kdx.losses import Losses
    from kdx.training.run import Run

__all__ = ["TensorBoardLog"]


class TensorBoardLog:
    """Writes losses and metrics as TensorBoard events under ``tensorboard/`` of the run's folder."""

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
        if self._writer and (run.logs(step) or losses.measured):
            numbers = {"loss": losses.total.item(), "lr": run.learning_rate} | losses.measured
            numbers |= {f"term/{name}": term.item() for name, term in losses.terms.items()}
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step)

    @hookimpl
    def kdx_epoch_end(self, run: Run, row: Mapping[str, Any]) -> None:
        """Writes the losses and metrics of an epoch."""
        if self._writer:
            for name, value in logged(row).items():
                if math.isfinite(value):
                    self._writer.add_scalar(name, value, run.step)

    @hookimpl
    def kdx_run_end(self, run: Run) -> None:
        """Closes the writer."""
        if self._writer:
            self._writer.close()
            self._writer = None
