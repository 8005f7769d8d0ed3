"""Observers of a run: logs, progress, trackers, early stopping."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.observers.early_stopping import EarlyStopping as EarlyStopping
    from kdx.observers.metrics_log import MetricsLog as MetricsLog
    from kdx.observers.metrics_log import read_metrics as read_metrics
    from kdx.observers.progress import ProgressBar as ProgressBar
    from kdx.observers.tensorboard import TensorBoardLog as TensorBoardLog
    from kdx.observers.tracker import Tracker as Tracker
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.observers.early_stopping": ["EarlyStopping"],
            "kdx.observers.metrics_log": ["MetricsLog", "read_metrics"],
            "kdx.observers.progress": ["ProgressBar"],
            "kdx.observers.tensorboard": ["TensorBoardLog"],
            "kdx.observers.tracker": ["Tracker"],
        },
    )
