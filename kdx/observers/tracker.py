"""An observer that writes to an experiment tracker, through Hugging Face Accelerate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdx.hookspecs import hookimpl
from kdx.observers.epoch_row import logged

if TYPE_CHECKING:
    from kdx.losses import Losses
    from kdx.training.run import Run

__all__ = ["Tracker"]


class Tracker:
    """Writes losses, learning rate, gradients and metrics to a tracker that Accelerate knows.

    Args:
        tracker: ``"wandb"``, ``"mlflow"``, ``"comet_ml"``, ``"aim"``, ``"clearml"``, ``"dvclive"``, ``"swanlab"``,
            ``"trackio"`` or ``"tensorboard"``, whichever package is installed, or an
            ``accelerate.tracking.GeneralTracker`` of your own.
        project: the project's name at the tracker.
        folder: for trackers that write files; None takes the run's folder, or the current one.
        config: stored with the run, for instance the recipe.
        options: for the tracker's constructor.

    Raises:
        ValueError: at the start of a run, a tracker that Accelerate does not know or that is not installed.

    Paper: none; https://huggingface.co/docs/accelerate/usage_guides/tracking lists the trackers.
    """

    def __init__(
        self,
        tracker: Any,
        *,
        project: str = "kdx",
        folder: str | Path | None = None,
        config: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.tracker, self.project = tracker, project
        self.folder = None if folder is None else Path(folder)
        self.config, self.options = dict(config or {}), dict(options or {})
        self._trackers: list[Any] = []

    @hookimpl
    def kdx_configure(self, run: Run) -> None:
        """Starts the tracker, on the main process only."""
        from accelerate import Accelerator

        where = self.folder or run.folder or Path()
        accelerator = Accelerator(log_with=self.tracker, project_dir=str(where))
        if not accelerator.log_with:
            raise ValueError(f"tracker: {self.tracker!r} is not installed, so Accelerate cannot use it; pip install it")
        options = {self.tracker: self.options} if isinstance(self.tracker, str) and self.options else {}
        accelerator.init_trackers(self.project, config=self.config or None, init_kwargs=options)
        self._trackers = list(accelerator.trackers) if accelerator.is_main_process else []

    @hookimpl
    def kdx_step_end(self, run: Run, step: int, losses: Losses) -> None:
        """Writes the losses of a logged step."""
        if self._trackers and (run.logs(step) or losses.measured):
            numbers = {"loss": losses.total.item(), "lr": run.learning_rate} | losses.measured
            self._log(numbers | {f"term/{name}": term.item() for name, term in losses.terms.items()}, step)

    @hookimpl
    def kdx_epoch_end(self, run: Run, row: Mapping[str, Any]) -> None:
        """Writes the losses and metrics of an epoch; those that are not finite are left out."""
        found = {name: value for name, value in logged(row).items() if math.isfinite(value)}
        self._log({"epoch": run.epoch} | found, run.step)

    @hookimpl
    def kdx_run_end(self, run: Run) -> None:
        """Ends the tracker's run."""
        trackers, self._trackers = self._trackers, []
        for tracker in trackers:
            tracker.finish()

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        for tracker in self._trackers:
            tracker.log(values, step=step)
