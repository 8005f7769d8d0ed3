"""``kdx cache``: train or find a recipe's teacher and store its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kdx.errors import RecipeError
from kdx.experiment.data import ExperimentData
from kdx.experiment.experiment import Experiment, threads
from kdx.experiment.plan import stages_of
from kdx.experiment.recipe import Recipe, StoreSection
from kdx.experiment.recipe_files import check_recipe
from kdx.experiment.rehearsal import rehearse_store
from kdx.experiment.stage_store import origin_of, store_head, write_stage_store
from kdx.lock import sole_writer
from kdx.registry import Plugins
from kdx.store import Store, import_topk
from kdx.trust import Rule, Trusted, trusting

__all__ = ["cache_teacher", "import_teacher"]


def import_teacher(
    recipe: Recipe,
    out: Path,
    source: Path,
    *,
    progress: Callable[[int, int], object] = lambda done, total: None,
    plugins: Plugins | None = None,
    trust: Trusted = (),
    **options: Any,
) -> Store:
    """Writes the store of a recipe's training rows from log-probabilities that another program wrote.

    Args:
        recipe: whose rows they are of; its teacher is not looked at.
        out: the store's folder.
        source: a file, see :func:`kdx.store.import_topk`; a record says its row of the data set as ``index``, as some
            rows are held out.
        progress: told shards done and all shards.
        plugins: where components come from; None takes those installed.
        trust: see :func:`kdx.run`.
        **options: ``k``, ``temperature``, ``of`` and ``dtype`` of :func:`kdx.store.import_topk`; None: as it has them.

    Raises:
        StoreError: see :func:`kdx.store.import_topk`.
        TrustError: see :func:`kdx.run`.
    """
    given = {name: value for name, value in options.items() if value is not None}
    rule = Rule.of(trust, plugins)
    with trusting(rule), threads(recipe):
        data = ExperimentData(recipe, rule.plugins)
        return import_topk(
            out,
            source,
            data.few,
            classes=data.shape["num_classes"],
            collate=data.task.collate,
            origin=origin_of(recipe),
            progress=progress,
            **given,
        )


def cache_teacher(
    recipe: Recipe,
    out: Path,
    *,
    teachers: Path,
    observers: Sequence[object] = (),
    notify: Callable[[str], object] = lambda _: None,
    progress: Callable[[int, int], object] = lambda done, total: None,
    plugins: Plugins | None = None,
    trust: Trusted = (),
    **options: Any,
) -> Store:
    """Writes the store of a recipe's teacher, or goes on with one that was interrupted.

    The teacher is trained in ``out/teacher`` as ``kdx run`` does it, unless weights are given or it was trained before.
    A recipe uses the store as ``teacher.store.folder: OUT``.

    Args:
        recipe: with a section ``teacher``.
        out: the store's folder.
        teachers: where trained teachers are kept.
        observers: see :func:`kdx.fit`.
        notify: called with a sentence for the user.
        progress: told shards done and all shards.
        plugins: where components come from; None takes those installed.
        trust: see :func:`kdx.run`.
        **options: keys of the recipe's section ``teacher.store`` that differ.

    Raises:
        RecipeError: the recipe has no teacher that is trained before the student, or an option is wrong.
        StoreError: see :func:`kdx.store.write_store`.
        InUseError: another process writes into the folder.
        TrustError: see :func:`kdx.run`.
    """
    if recipe.teacher is None or not any(stage.name == "teacher" for stage in stages_of(recipe, plugins)):
        raise RecipeError("a store needs a teacher that is trained before the student, and the recipe has none")
    values = recipe.dump()
    given = {key: value for key, value in options.items() if value is not None}
    section = (values["teacher"]["store"] or {}) | given | {"folder": str(out)}
    recipe = check_recipe(values | {"teacher": values["teacher"] | {"store": section}}, plugins=plugins, trust=trust)
    assert recipe.teacher is not None
    store: StoreSection | None = recipe.teacher.store
    assert store is not None
    experiment = Experiment(recipe, out, observers, teachers=teachers, notify=notify, plugins=plugins, trust=trust)
    assembly = experiment.assembly
    with trusting(experiment.rule), threads(recipe), ExitStack() as alone:
        rehearse_store(assembly, "teacher")
        alone.enter_context(sole_writer(out, name=".cache.lock"))  # .lock is that of the store, which is written here
        experiment.runner.run(assembly.stages["teacher"])
        model, task, rows = assembly.model("teacher"), assembly.task, assembly.data.few
        head = store_head(recipe, "teacher", model)
        return write_stage_store(recipe, rows, model, store, out, task, progress, head=head)
