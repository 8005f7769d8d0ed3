"""The state of a run: what observers see, what a checkpoint holds, and how a run continues from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdx.schemes.base import Scheme

__all__ = ["Run"]


@dataclass(slots=True)
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
        history: one row per evaluation: ``epoch``, ``step`` and the metrics, as ``student/accuracy``.
        best: the row that was selected, if ``select`` was given.
        higher_is_better: metric of the history -> whether more of it is better; None where the metric does not say.
        seconds: training time, over all resumed parts.
        stopped: why it ended early, else None.
        open_ended: whether it ends by steps alone; ``epochs`` is then what the length of the
            data at the start promises.
        prequential: one row per logged step of the tests before training, if they were asked for: ``epoch``, ``step``
            and accuracies, as ``prequential/student``.
        teachers: name -> fingerprint of every frozen teacher, the same before and after the run.
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

    @property
    def goes_on(self) -> bool:
        """Whether another epoch begins, or goes on."""
        more = self.open_ended or self.epoch < self.epochs
        return more and self.step < self.total_steps and not self.stopped

    def logs(self, step: int) -> bool:
        """Whether the losses of this step are logged."""
        return step % self.log_every == 0 or step == self.total_steps

    def stop(self, reason: str) -> None:
        """Asks the run to end after this step, as an early-stopping observer does; resuming it trains no further."""
        self.stopped = reason
