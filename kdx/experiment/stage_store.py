"""The stores of an experiment: a trained teacher's outputs on the training rows, written when they are needed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from kdx.datasets.view import View
from kdx.experiment.recipe import HeadSection, Recipe, StoreSection
from kdx.head import Head
from kdx.stage_name import split_name
from kdx.store import Store, write_store
from kdx.tasks.base import Task
from kdx.teachers import Stored

__all__ = [
    "head_of",
    "origin_of",
    "store_head",
    "store_section",
    "store_views",
    "stored_teacher",
    "told_teacher",
    "write_stage_store",
]


def store_section(recipe: Recipe, teacher: str) -> StoreSection | None:
    """The section on the store of a teacher's outputs, None if there is none; an assistant has that of the teacher."""
    section = recipe.all_teachers.get(split_name(teacher)[0], recipe.teacher)
    return section.store if section else None


def head_of(section: Literal["auto"] | HeadSection | None, model: nn.Module) -> Head | None:
    """The head that a recipe says of a model, None where it says none.

    Raises:
        CaptureError: ``auto`` for a model that does not say its head itself.
    """
    if section is None or section == "auto":
        return None if section is None else Head.of(model)
    return Head(section.hidden, section.layer, scale=section.scale, softcap=section.softcap)


def store_head(recipe: Recipe, teacher: str, model: nn.Module) -> Head | None:
    """The head that the hidden states of a teacher's store go through, where the recipe says it."""
    section = recipe.all_teachers.get(split_name(teacher)[0], recipe.teacher)
    return head_of(section.head, model) if section else None


def store_views(recipe: Recipe, teachers: tuple[str, ...]) -> int | None:
    """The number of views of the training rows under these teachers; None without a store."""
    sections = [store_section(recipe, name) for name in teachers]
    return next((section.views for section in sections if section), None)


def write_stage_store(
    recipe: Recipe,
    rows: View,
    model: nn.Module,
    section: StoreSection,
    folder: Path,
    task: Task,
    progress: Callable[[int, int], object] = lambda done, total: None,
    *,
    head: Head | None = None,
) -> Store:
    """Writes the store of a trained teacher, or what is missing of it; one that matches is only opened.

    ``head`` is the teacher's, of hidden states that are stored; None: what the model says itself.
    ``task`` puts rows into batches, and its responses say where the classes are.

    Raises:
        StoreError: the folder holds another store, or the disk is full.
    """
    on_gpu = recipe.device == "auto" and torch.cuda.is_available()
    return write_store(
        folder,
        model.to("cuda" if on_gpu else "cpu"),
        rows.cycling(section.views),
        what=section.contents,
        views=section.views,
        dtype=section.dtype,
        batch_size=section.batch_size,
        workers=recipe.data.workers,
        output=head,
        seed=recipe.seed,
        class_dim=task.responses.class_dim,
        collate=task.collate,
        origin=origin_of(recipe),
        progress=progress,
    )


def told_teacher(recipe: Recipe, rows: View, name: str) -> Stored:
    """A teacher that is a store without a model, as one that :func:`kdx.store.import_topk` wrote.

    Raises:
        StoreError: it is of other data.
    """
    section = store_section(recipe, name)
    assert section is not None
    assert section.folder is not None
    return Stored(section.folder, data=rows.cycling(section.views), origin=origin_of(recipe))


def origin_of(recipe: Recipe) -> dict[str, str]:
    """The facts that a store keeps of a recipe's data beside those that the data say of themselves."""
    return {"options": json.dumps(recipe.data.dataset.options, sort_keys=True, default=str)}


def stored_teacher(
    recipe: Recipe,
    rows: View,
    model: nn.Module,
    name: str,
    folder: Path,
    task: Task,
    notify: Callable[[str], object],
) -> Stored:
    """The teacher of a stage that learns from a store; the store is written first, if it is not there.

    Args:
        recipe: the experiment.
        rows: the training rows.
        model: the trained teacher, which runs only while the store is written.
        name: of the teacher's stage, or ``stage:model``.
        folder: of the stage; the store is its subfolder ``store`` (``store-teacher`` of ``stage:teacher``) unless the
            recipe says where.
        task: puts rows into batches, and its responses say where the classes are.
        notify: called with a sentence for the user.
    """
    section = store_section(recipe, name)
    assert section is not None
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))

    start = time.perf_counter()
    model_name = split_name(name)[1]
    where = section.folder or folder / ("store" if model_name is None else f"store-{model_name}")
    store = write_stage_store(recipe, rows, model, section, where, task, tell, head=store_head(recipe, name, model))
    seconds = time.perf_counter() - start
    what = f"{', '.join(section.contents)} of {len(rows):,} samples in {store.views} views"
    if told[0][0] == told[0][1]:
        notify(f"{name}: stored before: {what}, from {where}")
    else:
        notify(f"{name}: stored {what} in {seconds:.1f} s, {store.bytes / 1e6:.2f} MB; it runs no more")
    return Stored(store, teacher=model, data=rows.cycling(store.views))
