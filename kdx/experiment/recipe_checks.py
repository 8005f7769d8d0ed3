"""The components of a recipe, checked against their signatures."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kdx.errors import RecipeError, UnknownNameError
from kdx.experiment.recipe import Recipe
from kdx.options import check_options, check_takes
from kdx.ref import Ref
from kdx.registry import Kind, default_plugins

__all__ = ["check_component", "locating"]


@contextmanager
def locating(path: str) -> Iterator[None]:
    """Says where the values stand that a component refuses when it is built.

    Raises:
        RecipeError: the component raised a ValueError or a TypeError, or needs a package that is not installed.
    """
    try:
        yield
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"{path}: {error}") from error


SUPPLIED = {
    "scheme": frozenset(
        {
            "student",
            "teacher",
            "teachers",
            "peers",
            "task",
            "knowledge",
            "qualities",
            "student_output",
            "teacher_output",
        }
    ),
    "dataset": frozenset({"split"}),
    "model": frozenset({"num_classes", "input_shape"}),
}
"""Parameters that an experiment fills in itself, by kind."""


def _check_components(recipe: Recipe) -> None:
    check_component("data.dataset", "dataset", recipe.data.dataset)
    check_component("student.model", "model", recipe.student.model)
    for name, section in recipe.all_teachers.items():
        path = "teacher" if section is recipe.teacher else f"teachers.{name}"
        check_component(f"{path}.model", "model", section.model)
    for place, peer in enumerate(recipe.peers if isinstance(recipe.peers, list) else []):
        check_component(f"peers.{place}", "model", peer)
    wants = inspect.signature(check_component("scheme", "scheme", recipe.scheme)).parameters
    scheme = f"scheme {recipe.scheme.name!r}"
    assistant = check_component("assistant", "assistant", recipe.assistant) if recipe.assistant else None
    if "teacher" in wants and recipe.teacher is None and (assistant is None or assistant.has_teacher):
        raise RecipeError(f"{scheme} needs a teacher: give the section teacher with its model")
    if "teachers" in wants and not recipe.all_teachers:
        raise RecipeError(f"{scheme} needs teachers: give the section teachers, a model for each name")
    if "teacher" not in wants and "teachers" not in wants and recipe.teacher is not None and not recipe.assistant:
        raise RecipeError(f"{scheme} takes no teacher: remove the section teacher")
    if "teachers" not in wants and recipe.teachers and not recipe.assistant:
        raise RecipeError(f"{scheme} takes no more than one teacher: remove the section teachers")
    if "knowledge" not in wants and recipe.knowledge and not recipe.assistant:
        raise RecipeError(f"{scheme} takes no knowledge: remove the section knowledge (knowledge: null does so)")
    if "peers" not in wants and recipe.peers is not None:
        raise RecipeError(f"{scheme} has no peers: remove peers")
    for name, term in recipe.knowledge.items():
        check_component(f"knowledge.{name}", "knowledge", term)
    if recipe.assistant is None or assistant is None:
        return
    if assistant.has_teacher and recipe.teacher is None:
        raise RecipeError("assistant: it stands between a teacher and a student; give the section teacher")
    if not assistant.has_teacher and recipe.all_teachers:
        raise RecipeError(
            f"assistant {recipe.assistant.name!r} begins with the student alone: remove the section teacher"
        )
    if not assistant.has_teacher and "direct" in recipe.controls:
        raise RecipeError("controls: direct is the student of the teacher alone, and there is no teacher; remove it")


def check_component(path: str, kind: Kind, component: Ref) -> Any:
    """Loads a component that a recipe (or a stage) names and checks its options.

    Raises:
        RecipeError: there is none of this name, or an option is wrong; ``path`` says where.
    """
    try:
        target = default_plugins().load(kind, component.name)
    except UnknownNameError as error:
        raise RecipeError(f"{path}.name: {error}") from error
    where, supplied = f"{path} ({component.name})", SUPPLIED.get(kind, frozenset())
    check_options(where, target, component.options, supplied=supplied)
    check_takes(where, target, () if kind == "scheme" else supplied)  # a scheme gets what its signature names
    return target
