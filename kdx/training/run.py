"""The state of a run: what observers see, what a checkpoint holds, and how a run continues from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdx.schemes.base import Scheme
from kdx.training.ledger import Compute, Ledger

__all__ = ["Run", "StageInfo"]

_SHOWN = 6
"""Numbers of the newest epoch in the text that stands for a run."""


@dataclass(frozen=True, slots=True)
class StageInfo:
    """The stage of an experiment that a run is.

    Args:
        name: of the stage, as ``"distilled"``.
        role: see :data:`kdx.stage.Role`.
        teachers: the stages whose models teach in it.
        recipe: name of the recipe.
        folder: of the whole experiment; ``run.folder`` is that of the stage.
    """

    name: str
    role: str
    teachers: tuple[str, ...]
    recipe: str
    folder: Path


@dataclass(slots=True, repr=False)
class Run:
    """The state of a run, as observers see it and as :func:`fit` returns it.

    Args:
        scheme: what is trained.
        folder: where it writes, or None.
        epochs: how many epochs it will take.
        total_steps: how many optimizer steps it will take.
        log_every: steps between logged losses.
        epoch: epochs begun so far, from 0.
        step: optimizer steps done.
        learning_rate: of the first parameter group.
        history: one row per epoch: ``epoch`` and ``step``, the training losses ``train/loss`` and ``train/<term>``
            (means over the whole epoch, weighted as in the total, which is their sum) and, with ``evaluate``, the
            metrics, as ``student/accuracy``.
        best: the row that was selected, if ``select`` was given.
        higher_is_better: metric of the evaluation -> whether more of it is better; None where the metric does not say.
            Known before the first step, unless the data of the evaluation run only once.
        seconds: training time, over all resumed parts.
        stopped: why it ended early, else None.
        open_ended: whether it ends by steps alone; ``epochs`` is then what the length of the
            data at the start promises.
        prequential: one row per logged step of the tests before training, if they were asked for: ``epoch``, ``step``
            and accuracies, as ``prequential/student``.
        teachers: name -> fingerprint of every frozen teacher, the same before and after the run.
        evaluates: whether every epoch ends with an evaluation.
        stage: of the experiment that it is part of, else None.
        processes: how many train together.

    Attributes:
        ledger: counts the forward passes; :attr:`compute` is what they come to.
    """

    scheme: Scheme
    folder: Path | None
    epochs: int
    total_steps: int
    log_every: int
    epoch: int = 0
    step: int = 0
    learning_rate: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    higher_is_better: dict[str, bool | None] = field(default_factory=dict)
    seconds: float = 0.0
    stopped: str | None = None
    prequential: list[dict[str, Any]] = field(default_factory=list)
    open_ended: bool = False
    teachers: dict[str, str] = field(default_factory=dict)
    evaluates: bool = False
    stage: StageInfo | None = None
    processes: int = 1
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.scheme, self.processes)

    def __repr__(self) -> str:
        length = f"{self.step} of {self.total_steps} steps, {self.seconds:.1f} s"
        parts = [length if self.open_ended else f"{self.epoch} of {self.epochs} epochs, {length}"]
        if self.history:
            row = self.history[-1]
            numbers = [f"{key} {row[key]:.4g}" for key in row if _is_shown(key)]
            parts.append(", ".join(numbers[:_SHOWN] + ["..."] * (len(numbers) > _SHOWN)))
        parts += [f"best in epoch {self.best['epoch']}"] if self.best else []
        parts += [f"stopped: {self.stopped}"] if self.stopped else []
        parts += [f"in {self.folder}"] if self.folder else []
        return f"<Run of {type(self.scheme).__name__}: {'; '.join(parts)}>"

    @property
    def goes_on(self) -> bool:
        """Whether another epoch begins, or goes on."""
        more = self.open_ended or self.epoch < self.epochs
        return more and self.step < self.total_steps and not self.stopped

    @property
    def compute(self) -> Compute:
        """The cost of the run so far. Its operations are counted when this is asked for, in a second or two."""
        return self.ledger.compute(self.step, self.seconds)

    def logs(self, step: int) -> bool:
        """Whether the losses of this step are logged."""
        return step % self.log_every == 0 or step == self.total_steps

    def stop(self, reason: str) -> None:
        """Asks the run to end after this step, as an early-stopping observer does; resuming it trains no further."""
        self.stopped = reason


def _is_shown(key: str) -> bool:
    """Whether a number of the history is short enough for a line: the loss and the metrics, not every term."""
    return key not in ("epoch", "step") and (key == "train/loss" or not key.startswith("train/"))
