"""The contents of a checkpoint, and how a run continues from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from kdx import rng
from kdx.batch import Batch
from kdx.directions import more_is_better
from kdx.errors import CheckpointError, RunExistsError, nearest
from kdx.files import named, refuse_links, remove_leftovers
from kdx.losses import Losses
from kdx.training import evaluation
from kdx.training.batches import ResumableLoader
from kdx.training.checkpoint import export_weights, latest_checkpoint, newest_checkpoint, save_checkpoint
from kdx.training.epoch_losses import EpochLosses
from kdx.training.evaluation import Metrics, metrics_of
from kdx.training.finite import Finite
from kdx.training.phases import Phases
from kdx.training.prequential import Prequential
from kdx.training.run import Run
from kdx.training.tryout_evaluation import try_evaluation

__all__ = ["State"]


Prepare = Callable[[str, nn.Module], None]
"""Prepares a student, by name, for its evaluation."""


class State:
    """Saves and restores everything that a run continues with."""

    def __init__(
        self,
        run: Run,
        accelerator: Accelerator,
        phases: Phases,
        loader: ResumableLoader,
        prequential: Prequential | None = None,
    ) -> None:
        self.run = run
        self.accelerator = accelerator
        self.phases = phases
        self.loader = loader
        self.finite = Finite()
        self.prequential = prequential
        self.losses = EpochLosses()
        self.best: dict[str, dict[str, Tensor]] = {}

    def add(self, losses: Losses, window: Sequence[Batch]) -> None:
        """Takes the losses of a step, without their graph, and its micro-batches.

        Raises:
            KdxError: one is not finite; looked at where the losses are logged, and on the CPU in every step.
        """
        self.finite.add(losses, self.run.step, check=self.run.logs(self.run.step), window=window)
        self.losses.add(losses)

    def save(self) -> None:
        """Writes a checkpoint, if the run has a folder.

        Raises:
            KdxError: a loss since the last check was not finite; nothing is written.
        """
        self.finite.check(self.run.step)
        if self.run.folder is None or not self.accelerator.is_main_process:
            return
        run, scaler = self.run, self.accelerator.scaler
        state = {
            "scheme": run.scheme.state_dict(),
            "best": self.best,
            "phases": self.phases.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "rng": rng.capture(),
            "loader": self.loader.state_dict(),
            "losses": self.losses.state_dict(),
            "prequential": self.prequential.state_dict() if self.prequential else None,
            "run": {
                "epoch": run.epoch,
                "history": run.history,
                "prequential": run.prequential,
                "best": run.best,
                "higher_is_better": run.higher_is_better,
                "seconds": run.seconds,
                "epochs": run.epochs,
                "total_steps": run.total_steps,
                "stopped": run.stopped,
                "teachers": run.teachers,
                "ledger": run.ledger.state_dict(),
            },
        }
        save_checkpoint(self.run.folder / "checkpoints", run.step, state)

    def claim(self, *, resume: bool) -> None:
        """Takes the folder, going back to its newest checkpoint when resuming."""
        if self.run.folder is None:
            if resume:
                raise ValueError("resume needs the folder of the run")
            return
        folder, checkpoints = self.run.folder, self.run.folder / "checkpoints"
        with named(folder, "made"):
            folder.mkdir(parents=True, exist_ok=True)
        exports = (folder / f"{name}.safetensors" for name in self.run.scheme.students)
        refuse_links([checkpoints, folder / "metrics.jsonl", folder / "tensorboard", *exports])
        if not resume and latest_checkpoint(checkpoints) is not None:
            raise RunExistsError(f"{folder} holds a run already; resume=True goes on with it")
        if self.accelerator.is_main_process:
            remove_leftovers([folder, checkpoints])
        if (found := newest_checkpoint(checkpoints)) is not None:
            self._load(*found)

    def _load(self, path: Path, state: dict[str, Any]) -> None:
        run = self.run
        try:
            run.scheme.load_state_dict(state["scheme"])
            self.phases.load_state_dict(state["phases"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"checkpoint {path} is of another scheme or optimizer: {error}") from error
        saved = state["run"]
        epochs = saved["epochs"] if run.open_ended else run.epochs
        if (saved["epochs"], saved["total_steps"]) != (epochs, run.total_steps):
            raise CheckpointError(
                f"checkpoint {path} is of a run of {saved['epochs']} epochs and {saved['total_steps']} steps, this one "
                f"has {run.epochs} and {run.total_steps}; resume with the same length"
            )
        if other := sorted(name for name, digest in run.teachers.items() if saved["teachers"].get(name) != digest):
            raise CheckpointError(
                f"checkpoint {path} is of a run with another teacher: {', '.join(map(repr, other))} had other weights "
                "or buffers; resume with the teacher that the run began with"
            )
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        run.epochs = epochs
        self.loader.load_state_dict(state["loader"])
        self.losses.load_state_dict(state["losses"])
        if self.prequential and (counts := state.get("prequential")):
            self.prequential.load_state_dict(counts)
        run.step, run.epoch, run.seconds = state["step"], saved["epoch"], saved["seconds"]
        run.history, run.best, self.best = saved["history"], saved["best"], state["best"]
        run.prequential, run.higher_is_better = saved["prequential"], saved["higher_is_better"]
        run.stopped = saved.get("stopped")
        run.ledger.load_state_dict(saved.get("ledger", {}))
        run.learning_rate = self.phases.learning_rate
        rng.restore(state["rng"])

    def end_epoch(
        self, loader: Iterable[Any] | None, metrics: Metrics | None, select: str | None, prepare: Prepare
    ) -> dict[str, Any]:
        """Adds the epoch's row to the history and returns it: training losses, and metrics if there is a loader.

        The students' weights are remembered if they are selected. Where it raises, the epoch has not ended yet: a run
        that goes on from there evaluates it again.

        Args:
            loader: to evaluate on, or None.
            metrics: see :func:`kdx.fit`.
            select: see :func:`kdx.fit`.
            prepare: is called with every student before it is evaluated.

        Raises:
            KdxError: a loss of the epoch was not finite.
        """
        run = self.run
        self.finite.check(run.step)
        measured = {} if loader is None else self._evaluate(loader, metrics, prepare)
        row = {"epoch": run.epoch + 1, "step": run.step, **self.losses.row(), **measured}
        run.history.append(row)
        if loader is not None and select is not None:
            self._select(select, row)
        return row

    def _evaluate(self, loader: Iterable[Any], metrics: Metrics | None, prepare: Prepare) -> dict[str, Any]:
        run, metrics = self.run, metrics or metrics_of(self.run.scheme.task)
        row: dict[str, Any] = {}
        for name, student in run.scheme.students.items():
            output = evaluation.output_for(run.scheme, name, metrics)
            with run.ledger.counting():
                prepare(name, student)
                found = evaluation.evaluate(
                    student, loader, metrics=metrics, device=self.accelerator.device, output=output
                )
            row |= {f"{name}/{metric}": value for metric, value in found.items()}
            run.higher_is_better |= {f"{name}/{metric}": better for metric, better in found.higher_is_better.items()}
        return row

    def _select(self, select: str, row: dict[str, Any]) -> None:
        run, key = self.run, self._selected(select, row)
        sign = 1.0 if more_is_better(select, run.higher_is_better[key]) else -1.0
        if run.best is None or math.isnan(run.best[key]) or sign * row[key] > sign * run.best[key]:
            run.best = row
            self.best = {
                name: {key: value.detach().cpu().clone() for key, value in student.state_dict().items()}
                for name, student in run.scheme.students.items()
            }

    def try_evaluation(self, loader: Iterable[Any], metrics: Metrics | None, select: str | None) -> None:
        """Evaluates every student on one batch, before training; see :func:`try_evaluation`.

        Raises:
            ComponentError: a student, a metric or the data fail.
            ValueError: there is no metric ``select``, nobody says whether more of it is better, or there is no batch.
        """
        metrics = metrics or metrics_of(self.run.scheme.task)
        directions = try_evaluation(self.run.scheme, loader, metrics, self.accelerator.device)
        self.run.higher_is_better |= directions
        if directions and select is not None:
            more_is_better(select, directions[self._selected(select, directions)])

    def _selected(self, select: str, keys: Iterable[str]) -> str:
        key = f"{next(iter(self.run.scheme.students))}/{select}"
        if key not in keys:
            names = [each.partition("/")[2] for each in keys if each.startswith(key.partition("/")[0] + "/")]
            raise ValueError(f"select={select!r} is no metric of the evaluation; {nearest(select, names)}")
        return key

    def finish(self, prepare: Prepare) -> None:
        """Puts the selected weights back and exports the students, each prepared as for an evaluation."""
        run = self.run
        for name, student in run.scheme.students.items():
            if name in self.best:
                student.load_state_dict(self.best[name])
            with run.ledger.counting():
                prepare(name, student)
            if run.folder is not None and self.accelerator.is_main_process:
                export_weights(student, run.folder / f"{name}.safetensors")
