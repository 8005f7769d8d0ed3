"""The stages of an experiment built once before any is trained, so that wrong options are known by then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from kdx import rng
from kdx.batch import Batch
from kdx.capture import call, logits_of
from kdx.datasets.view import View
from kdx.errors import PlanError, RecipeError
from kdx.experiment.assembly import Assembly
from kdx.experiment.components import locating
from kdx.experiment.plan import train_of
from kdx.experiment.recipe import Recipe, Teacher
from kdx.experiment.stage_store import store_head, store_section, write_stage_store
from kdx.losses import Losses
from kdx.modes import evaluating
from kdx.ref import Ref
from kdx.schemes.base import Scheme
from kdx.stage import Produced, Stage
from kdx.stage_name import split_name
from kdx.store import Store
from kdx.tasks.base import Task
from kdx.tasks.heads import Heads
from kdx.teachers import Stored
from kdx.training.batches import first_batch
from kdx.training.checkpoint import check_exportable
from kdx.training.loop import run_length, set_up
from kdx.training.optim import make_optimizer, make_schedule
from kdx.training.phases import Phases
from kdx.training.tryout import Tryout
from kdx.training.weights import load_weights

__all__ = ["rehearse", "rehearse_store"]

ROWS = 2
"""Training rows of which a store is written."""
TRIED = 8
"""Training rows on which a scheme is tried."""


def rehearse(assembly: Assembly) -> None:
    """Builds what every stage will train, with new models in place of trained ones; trains, keeps and draws nothing.

    Of a stage whose student or teacher is made from a trained model everything but the scheme is built.

    Raises:
        RecipeError: a model, a scheme, a knowledge component, an optimizer or a schedule refuses its options; a model
            gives no logits for the data; a term teaches nothing (:class:`kdx.training.tryout.Tryout`).
        KdxError: a tap that there is not, outputs that cannot be stored, weights that cannot be loaded or written.
    """
    with TemporaryDirectory() as folder, rng.isolated():
        untrained, seen = _untrained(assembly, folder), set[tuple[Ref, int]]()
        for stage in untrained.stages.values():
            _build_stage(untrained, stage, seen)


def rehearse_store(assembly: Assembly, teacher: str) -> None:
    """Stores a few outputs of a teacher that is not trained yet, and forgets them.

    Raises:
        KdxError: see :func:`rehearse`.
    """
    with TemporaryDirectory() as folder, rng.isolated():
        _untrained(assembly, folder).stored(teacher)


def _untrained(assembly: Assembly, folder: str) -> Assembly:
    """The same assembly with untrained models in place of trained ones."""
    source = _Untrained(assembly.recipe, Path(folder))
    stages = list(assembly.stages.values())
    return Assembly(assembly.recipe, stages, source, data=assembly.data, plugins=assembly.plugins)


class _Untrained:
    """A source of models for which no stage has been trained.

    Args:
        recipe: what is rehearsed.
        folder: for stores.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        self.folder = folder
        self.stores: dict[str, Store] = {}

    def produced(self, stage: str) -> Produced | None:
        return None

    def keep(self, stage: str, produced: Produced) -> None:
        raise AssertionError(f"a rehearsal makes no structures, and made that of {stage!r}")

    def weights(self, stage: str) -> Path | None:
        return None

    def result(self, stage: str) -> Mapping[str, Any]:
        raise AssertionError(f"a rehearsal has no results, and was asked for that of {stage!r}")

    def quality(self, stage: str) -> float:
        return 1.0

    def stored(self, teacher: str, rows: View, model: nn.Module, task: Task) -> Stored:
        section = store_section(self.recipe, teacher)
        assert section is not None
        few = View(rows.dataset, rows.indices[:ROWS])
        one_view = section.model_copy(update={"views": 1})
        if teacher not in self.stores:  # an untrained teacher is drawn anew for every stage
            place, head = self.folder / teacher, store_head(self.recipe, teacher, model)
            self.stores[teacher] = write_stage_store(self.recipe, few, model, one_view, place, task, head=head)
        return Stored(self.stores[teacher])


def _build_stage(assembly: Assembly, stage: Stage, seen: set[tuple[Ref, int]]) -> None:
    """Builds the models, the scheme, the batches, the optimizers and the schedules of a stage, as far as known."""
    scheme = None
    if _known(assembly, stage.name, *stage.teachers, *assembly.taught_along(stage)):
        ref = assembly.ref(stage.name)
        if (ref, id(assembly.data_of(stage.name))) not in seen:
            _check_logits(assembly, ref, stage.name)
            seen.add((ref, id(assembly.data_of(stage.name))))
        scheme = assembly.scheme(stage)
        _check_starts(assembly, stage, scheme)
    elif stage.role in ("assistant", "distilled"):
        assembly.knowledge(stage)
        for name in stage.teachers:
            if _known(assembly, name) and store_section(assembly.recipe, name):
                assembly.stored(name)
    section = assembly.recipe.all_teachers.get(stage.name)
    if section and not section.trained_here:
        if scheme:
            _check_finished(assembly, stage, section)
    elif stage.role != "untrained":
        _build_training(assembly, stage, scheme)


def _check_starts(assembly: Assembly, stage: Stage, scheme: Scheme) -> None:
    """Checks that the models that begin with the weights of others are built alike, as far as those are known.

    Raises:
        PlanError: one is not, or the other stage hands on no such model.
    """
    first = next(iter(scheme.students))
    starts = {name: origin for name, origin in stage.starts.items() if name != "student"}
    starts |= {first: stage.begins_with} if stage.begins_with else {}
    for name, origin in starts.items():
        if not _known(assembly, origin) or assembly.models(stage.name).get(name) == (ref := assembly.ref(origin)):
            continue
        shapes = {key: value.shape for key, value in scheme.students[name].state_dict().items()}
        wanted = {key: value.shape for key, value in assembly.build(ref).state_dict().items()}
        if different := [key for key in {**shapes, **wanted} if shapes.get(key) != wanted.get(key)]:
            raise PlanError(
                f"stage {stage.name!r}: {name!r} cannot begin with the weights of {origin!r}, which is {ref} and built "
                f"otherwise: {len(different)} weights differ, as {different[0]!r}"
            )


def _check_finished(assembly: Assembly, stage: Stage, section: Teacher) -> None:
    """Checks that no weight of a teacher that is not trained is drawn at random, by drawing it twice.

    Raises:
        RecipeError: one is; the teacher would teach what nobody has taught it.
        CheckpointError: its weights are not those of the model.
    """
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = assembly.build(assembly.ref(stage.name), stage.name)
        if section.weights:
            load_weights(model, section.weights)
        drawn.append(dict(model.named_parameters()))
    if new := [name for name, value in drawn[0].items() if not torch.equal(value, drawn[1][name])]:
        shown = ", ".join(new[:3]) + (f" and {len(new) - 3} more" if len(new) > 3 else "")
        remedy = "remove skip from its weights" if section.weights else "give weights"
        raise RecipeError(
            f"{stage.name}: it is not trained, and of its weights {shown} {'is' if len(new) == 1 else 'are'} drawn at "
            f"random each time it is built; {remedy}, take a model that brings all of them, or have it trained"
        )


def _build_training(assembly: Assembly, stage: Stage, scheme: Scheme | None) -> None:
    train = train_of(stage, assembly.recipe)
    with locating(f"stage {stage.name}: train"):
        batches = assembly.training(stage, scheme)
        epochs, steps = run_length(batches, None if train.steps else train.epochs, train.steps, train.accumulate)
        if scheme is None:
            optimizer = make_optimizer(train.optimizer, [nn.Parameter(torch.zeros(1))])
            make_schedule(train.schedule, optimizer, steps=steps, epochs=epochs)
            return
    fed = scheme.feed(batches)
    stored = any(isinstance(part, Stored) for part in scheme.modules())  # of too few rows for a batch
    with locating(f"stage {stage.name}"):
        if stored and not scheme.ready:
            return
        set_up(scheme, fed, torch.device("cpu"))
    with locating(f"stage {stage.name}: train"):
        phases = Phases(scheme, train.optimizer, train.schedule, steps=steps, epochs=epochs)
    if not stored:
        with locating(f"stage {stage.name}"):
            _try(scheme.train(), phases, Batch.of(first_batch(fed)))


def _try(scheme: Scheme, phases: Phases, batch: Batch) -> None:
    """Tries a few rows, as :func:`kdx.fit` tries the first batch when the stage's turn has come."""

    def losses(batch: Batch, phase: str | None) -> Losses:
        found: Losses = scheme(batch) if phase is None else scheme(batch, phase)
        return found

    if type(scheme).batches is Scheme.batches:  # else rows belong together
        batch = batch.at(slice(TRIED))
    scheme.epoch_start(0, 1)
    scheme.advance(0, 1)
    Tryout(scheme, phases.phases, losses, again=False).first([batch])


def _check_logits(assembly: Assembly, ref: Ref, stage: str) -> None:
    """Runs a new model on one sample, and looks whether its weights can be written."""
    model = assembly.build(ref, stage)
    with evaluating(model), torch.no_grad():
        result = call(model, assembly.example_of(stage))
    check_exportable(model)
    data, task = assembly.data_of(stage), assembly.task_for(stage)
    width = data.shape["num_classes"]
    targets, where = task.collate([data.validation[0]]).targets, f"model ({ref.name})"
    if not isinstance(task, Heads):
        _check_outputs(where, task, logits_of(result), width, targets)
        return
    for name, outputs in task.read(result).items():
        own = task.heads[name].task
        _check_outputs(f"{where}: head {name!r}", own, outputs, width[name], task.target_of(name, targets))


def _check_outputs(where: str, task: Task, outputs: Tensor, width: int, targets: Any) -> None:
    found = list(outputs.shape)
    if task.one_class and found != [1, width]:
        raise RecipeError(f"{where}: expected logits {[1, width]} for one sample of the data, got {found}")
    with locating(f"{where}: task"):
        if outputs.dim() > 1:
            axis = task.responses.axis(outputs.shape)
            if outputs.shape[axis] < width or (outputs.shape[axis] > width and not task.padded):
                more = " or more" if task.padded else ""
                raise ValueError(
                    f"expected {width} outputs{more} on axis {axis} for one sample of the data, got {found}"
                )
        task.check(outputs, targets)


def _known(assembly: Assembly, *names: str) -> bool:
    """True if the models of these stages, or of ``stage:model``, are known before any is trained."""
    return all(
        isinstance(assembly.stages[stage].model, Ref) if model is None else assembly.built(stage)
        for stage, model in map(split_name, names)
    )
