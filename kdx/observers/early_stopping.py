"""An observer that ends a run once a metric has stopped improving."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kdx.directions import more_is_better
from kdx.errors import nearest
from kdx.hookspecs import hookimpl
from kdx.ranges import check_number, check_whole

if TYPE_CHECKING:
    from kdx.training.run import Run

__all__ = ["EarlyStopping"]


class EarlyStopping:
    """Ends a run when a metric has not improved for a number of evaluations.

    The training losses of the history count as metrics: ``EarlyStopping("train/loss")`` needs no ``evaluate``.
    It keeps no state but reads the run's history, so a resumed run stops where an unbroken one does. Give
    :func:`kdx.fit` ``select`` too, to end with the weights of the best epoch.

    Args:
        metric: a metric of the first student, such as ``"accuracy"``, or of any, such as ``"peer1/accuracy"``; or a
            training loss, as ``"train/loss"`` and ``"train/kd"``.
            The metric says whether more is better; ``kdx.Lowest("mse")`` and ``kdx.Highest("psnr")`` say it of one that
            does not.
        patience: epochs without improvement after which the run ends, >= 1.
        min_delta: smallest change that counts as an improvement, >= 0. A value that is not finite is none.

    Raises:
        ValueError: an argument out of range; before the run's first step, a metric that it does not have, one that does
            not say whether more is better, or a run without ``evaluate``.

    Example:
        >>> import kdx, torch
        >>> data = [(torch.randn(8, 3), torch.randint(2, (8,)))]
        >>> scheme, still = kdx.Supervised(torch.nn.Linear(3, 2)), kdx.Ref("SGD", lr=1e-30)
        >>> stop = [EarlyStopping("accuracy", patience=2)]
        >>> run = kdx.fit(scheme, data, epochs=9, evaluate=data, optimizer=still, observers=stop, device="cpu")
        >>> run.epoch, run.stopped
        (3, 'student/accuracy has not improved for 2 epochs')
    """

    def __init__(self, metric: str = "accuracy", *, patience: int = 5, min_delta: float = 0.0) -> None:
        self.metric, self.patience = metric, check_whole("patience", patience, least=1)
        self.min_delta = check_number("min_delta", min_delta, least=0)

    @hookimpl
    def kdx_configure(self, run: Run) -> None:
        """Refuses a metric that the run will not have; stops a resumed run at once if it had already stopped."""
        name = self._name(run)
        if not name.startswith("train/"):
            if not run.evaluates:
                raise ValueError(
                    f"{name!r} is measured by an evaluation after each epoch, and the run has none; give kdx.fit "
                    'evaluate=, or watch a training loss with EarlyStopping("train/loss")'
                )
            if run.higher_is_better:  # known before the first step
                self._check(name, run.higher_is_better)
                more_is_better(self.metric, run.higher_is_better[name])
        self._look(run)

    @hookimpl
    def kdx_epoch_end(self, run: Run) -> None:
        """Looks at the history, the newest epoch included."""
        self._look(run)

    def _name(self, run: Run) -> str:
        """The key of the history that is watched."""
        return self.metric if "/" in self.metric else f"{next(iter(run.scheme.students))}/{self.metric}"

    def _check(self, name: str, known: Iterable[str]) -> None:
        if name not in known:
            raise ValueError(f"metric: the run has no {name!r}; {nearest(name, set(known) - {'epoch', 'step'})}")

    def _look(self, run: Run) -> None:
        if not run.history:
            return
        name = self._name(run)
        self._check(name, run.history[-1])
        better = False if name.startswith("train/") else run.higher_is_better.get(name)
        sign = 1.0 if more_is_better(self.metric, better) else -1.0
        best, since = -math.inf, 0
        for row in (row for row in run.history if name in row):
            value = sign * row[name]
            if value > best + self.min_delta or (best == -math.inf and math.isfinite(value)):
                best, since = value, 0
            else:
                since += 1
        if since >= self.patience:
            run.stop(f"{name} has not improved for {since} epochs")
