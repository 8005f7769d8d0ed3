"""The place that an experiment's stages have their models from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from kdx.datasets.view import View
from kdx.stage import Produced
from kdx.tasks.base import Task
from kdx.teachers import Stored

__all__ = ["ModelSource"]


class ModelSource(Protocol):
    """The models, results and stores of earlier stages: from the folder of a run, or untrained ones in a rehearsal."""

    def produced(self, stage: str) -> Produced | None:
        """The model that a stage's structure was made into, None before that."""

    def keep(self, stage: str, produced: Produced) -> None:
        """Records the model that a stage's structure was made into."""

    def weights(self, stage: str) -> Path | None:
        """The trained weights of a stage, or of ``stage:model``; None if its model is taken as it is drawn."""

    def result(self, stage: str) -> Mapping[str, Any]:
        """The ``result.json`` of a stage."""

    def quality(self, stage: str) -> float:
        """The metric of the task on the validation rows, after a stage, or of ``stage:model``."""

    def stored(self, teacher: str, rows: View, model: nn.Module, task: Task) -> Stored:
        """A teacher that answers from its store, written from its model for the training rows if need be.

        ``task`` puts rows into batches, and its responses say where the classes are.
        """
