"""The stages of an experiment built once before any is trained, so that what their parts refuse is known by then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from typing_extensions import override

from kdx import rng
from kdx.capture import call, logits_of
from kdx.datasets.view import View
from kdx.errors import RecipeError
from kdx.experiment.plan import train_of
from kdx.experiment.recipe import StoreSection
from kdx.experiment.recipe_checks import locating
from kdx.experiment.stage_runner import StageRunner
from kdx.experiment.stage_store import write_stage_store
from kdx.modes import evaluating
from kdx.ref import Ref
from kdx.schemes.base import Scheme
from kdx.stage import Stage
from kdx.teachers import Stored
from kdx.training.checkpoint import load_weights
from kdx.training.loop import run_length
from kdx.training.optim import make_optimizer, make_schedule

__all__ = ["rehearse", "rehearse_store"]

ROWS = 2
"""Training rows of which a store is written."""


def rehearse(runner: StageRunner) -> None:
    """Builds what every stage will train, with new models in place of trained ones; trains, keeps and draws nothing.

    Of a stage whose student or teacher is made from a trained model everything but the scheme is built.

    Raises:
        RecipeError: a model, a scheme, a knowledge component, an optimizer or a schedule refuses its options; a model
            gives no logits for the data.
        KdxError: a tap that there is not, outputs that cannot be stored, weights that cannot be loaded.
    """
    with TemporaryDirectory() as folder, rng.isolated():
        rehearsal = _Rehearsal(runner, Path(folder))
        for stage in runner.stages.values():
            rehearsal.build_stage(stage)


def rehearse_store(runner: StageRunner, teacher: str) -> None:
    """Stores some of what a teacher that is not trained yet says, and forgets it.

    Raises:
        KdxError: see :func:`rehearse`.
    """
    with TemporaryDirectory() as folder, rng.isolated():
        _Rehearsal(runner, Path(folder))._stored(teacher)


class _Rehearsal(StageRunner):
    """A runner for which no stage has been trained.

    Args:
        runner: whose stages are built.
        folder: for stores.
    """

    def __init__(self, runner: StageRunner, folder: Path) -> None:
        super().__init__(runner.recipe, folder, list(runner.stages.values()), runner.cache)
        self.data = runner.data
        self.fitting: list[Ref] = []

    def build_stage(self, stage: Stage) -> None:
        """Builds the models, the scheme, the batches, the optimizer and the schedule of a stage, as far as known."""
        scheme = None
        if self._known(stage.name, *stage.teachers):
            ref = self.ref(stage.name)
            if ref not in self.fitting:
                self._check_logits(ref)
                self.fitting.append(ref)
            scheme = self._scheme(stage, ref)
        elif stage.role in ("assistant", "distilled"):
            self._knowledge(stage)
            for name in stage.teachers:
                if self._known(name) and self._store(name):
                    self._stored(name)
        section = self.recipe.all_teachers.get(stage.name)
        if scheme and section and section.weights:
            load_weights(next(iter(scheme.students.values())), section.weights)
        elif stage.role != "untrained":
            self._build_training(stage, scheme)

    def _build_training(self, stage: Stage, scheme: Scheme | None) -> None:
        train = train_of(stage, self.recipe)
        with locating(f"stage {stage.name}: train"):
            batches = self._batches(stage, scheme)
            epochs, steps = run_length(batches, None if train.steps else train.epochs, train.steps, train.accumulate)
            trained = scheme.parameters() if scheme else [nn.Parameter(torch.zeros(1))]
            optimizer = make_optimizer(train.optimizer, trained)
            make_schedule(train.schedule, optimizer, steps=steps, epochs=epochs)

    def _check_logits(self, ref: Ref) -> None:
        """Runs a new model on one sample."""
        model = self.build(ref)
        with evaluating(model), torch.no_grad():
            found = list(logits_of(call(model, self.example)).shape)
        if found != (expected := [1, self.data.shape["num_classes"]]):
            raise RecipeError(f"model ({ref.name}): expected logits {expected} for one sample of the data, got {found}")

    def _known(self, *stages: str) -> bool:
        """Whether the models of these stages are known before any is trained."""
        return all(isinstance(self.stages[name].model, Ref) for name in stages)

    def _store(self, teacher: str) -> StoreSection | None:
        section = self.recipe.all_teachers.get(teacher, self.recipe.teacher)
        return section.store if section else None

    @override
    def model(self, stage: str) -> nn.Module:
        return self.build(self.ref(stage))

    @override
    def quality(self, stage: str) -> float:
        return 1.0

    @override
    def _student(self, stage: Stage, model: Ref) -> nn.Module:
        return super()._student(replace(stage, start=None), model)

    @override
    def _stored(self, name: str) -> Stored:
        section = self._store(name)
        assert section is not None
        rows = View(self.data.few.dataset, self.data.few.indices[:ROWS])
        section = section.model_copy(update={"views": 1})
        return Stored(write_stage_store(self.recipe, rows, self.model(name), section, self.folder / name))
