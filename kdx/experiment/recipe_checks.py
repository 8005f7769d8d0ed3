"""The sections of a recipe, checked against each other and against the components that they name."""

from __future__ import annotations

import inspect

from kdx.errors import RecipeError, nearest
from kdx.experiment.components import SMOOTHED, check_component, is_structure, model_options_of, needs_of
from kdx.experiment.recipe import Recipe
from kdx.own_files import is_own
from kdx.ref import Ref
from kdx.registry import Plugins

__all__ = ["check_components"]


def check_components(recipe: Recipe, plugins: Plugins) -> None:
    """Checks the options of every component, and that the scheme and the assistant get what they need and no more.

    Raises:
        RecipeError: an option or a name is wrong, or a section is missing or unused.
    """
    check_component("data.dataset", "dataset", recipe.data.dataset, plugins)
    _check_augment(recipe)
    given = model_options_of(recipe, plugins)
    check_component("student.model", "model", recipe.student.model, plugins, given=given)
    if recipe.student.model.name == "derived" and (how := recipe.student.model.options.get("how")) is not None:
        if is_own(name := Ref.of(how).name):
            raise RecipeError(
                f"student.model.how: {name!r} is in a file, and a derived student is built from its config, which "
                "names no files; put the derivation into a plugin package (kdx new-plugin NAME --kind student)"
            )
        check_component("student.model.how", "student", Ref.of(how), plugins)
    for name, section in recipe.all_teachers.items():
        path = "teacher" if section is recipe.teacher else f"teachers.{name}"
        if section.model is None:
            continue
        made = is_structure(check_component(f"{path}.model", "model", section.model, plugins, given=given))
        if made and plugins.load("scheme", recipe.scheme.name).trains_teacher:
            raise RecipeError(
                f"{path}.model: {section.model.name!r} is made when its stage begins, and scheme "
                f"{recipe.scheme.name!r} trains the teacher along, without a stage; give a model"
            )
    for place, peer in enumerate(recipe.peers if isinstance(recipe.peers, list) else []):
        if is_structure(check_component(f"peers.{place}", "model", peer, plugins, given=given)):
            raise RecipeError(
                f"peers.{place}: {peer.name!r} is made when its stage begins, and a peer has no stage; give a number "
                "of peers, all as the student is made, or models"
            )
    for name, term in recipe.knowledge.items():
        check_component(f"knowledge.{name}", "knowledge", term, plugins)
    _check_task(recipe, plugins)
    _check_scheme(recipe, plugins)
    if recipe.assistant is not None:
        _check_assistant(recipe, recipe.assistant.name, plugins)


def _check_augment(recipe: Recipe) -> None:
    """Checks the transforms that the data and its views name."""
    sections = {"data.augment": recipe.data.augment} | {
        f"data.views.{name}.augment": view.augment for name, view in recipe.data.views.items()
    }
    for path, section in sections.items():
        for place, ref in enumerate(section.transforms or () if section else ()):
            from kdx.datasets.image_transforms import check_transform  # imports torch

            check_transform(f"{path}.{place}", ref)


def _check_task(recipe: Recipe, plugins: Plugins) -> None:
    """Checks the task's options, and that it suits the data and the controls."""
    target = check_component("task", "task", recipe.task.ref, plugins)
    if recipe.data.stream and not target.one_class:
        raise RecipeError(
            f"data.stream: it is tested by the accuracy of one class a sample, which the task {recipe.task.name!r} "
            "has not"
        )
    if "label-smoothing" in recipe.controls and SMOOTHED not in inspect.signature(target).parameters:
        raise RecipeError(
            f"controls: label-smoothing needs a task with the option {SMOOTHED}, not {recipe.task.name!r}"
        )


def _check_scheme(recipe: Recipe, plugins: Plugins) -> None:
    """Checks that the recipe has what the scheme needs; an assistant's stages may need what the scheme does not."""
    target = check_component("scheme", "scheme", recipe.scheme, plugins)
    needs = needs_of(target)
    _check_views(recipe, trained_along=target.trains_teacher)
    scheme, assistant = f"scheme {recipe.scheme.name!r}", None
    if recipe.assistant is not None:
        assistant = check_component("assistant", "assistant", recipe.assistant, plugins)
    if "teacher" in needs and recipe.teacher is None and (assistant is None or assistant.has_teacher):
        raise RecipeError(f"{scheme} needs a teacher: give the section teacher with its model")
    if "teachers" in needs and not recipe.all_teachers:
        raise RecipeError(f"{scheme} needs teachers: give the section teachers, a model for each name")
    if not needs & {"teacher", "teachers"} and recipe.teacher is not None and assistant is None:
        raise RecipeError(f"{scheme} takes no teacher: remove the section teacher")
    if "teachers" not in needs and recipe.teachers and assistant is None:
        raise RecipeError(f"{scheme} takes no more than one teacher: remove the section teachers")
    if "knowledge" not in needs and recipe.knowledge and assistant is None:
        raise RecipeError(f"{scheme} takes no knowledge: remove the section knowledge (knowledge: null does so)")
    if "peers" not in needs and recipe.peers is not None:
        raise RecipeError(f"{scheme} has no peers: remove peers")


def _check_views(recipe: Recipe, *, trained_along: bool) -> None:
    """Checks that the views that teachers and peers are to see are among those of the data."""
    asked = {f"scheme.{key}": recipe.scheme.options.get(key) for key in ("teacher_view", "peer_views")}
    for name, section in recipe.all_teachers.items():
        path = "teacher.view" if section is recipe.teacher else f"teachers.{name}.view"
        asked[path] = section.view
        if section.view is not None and trained_along:
            raise RecipeError(
                f"{path}: scheme {recipe.scheme.name!r} trains the teacher along and is told of the view itself: write "
                f"scheme.teacher_view={section.view}"
            )
    derived = recipe.student.model.name == "derived"
    own = {name for name, view in recipe.data.views.items() if view.own_inputs}
    if derived and any(section.view in own for section in recipe.all_teachers.values()):
        raise RecipeError(
            "student.model: a student derived from its teacher takes the teacher's inputs, and the teacher's view has "
            "inputs of its own; write a model for the student, or remove teacher.view"
        )
    for path, views in asked.items():
        for view in views if isinstance(views, list) else [views]:
            if view is not None and view not in recipe.data.views:
                raise RecipeError(f"{path}: data.views has no {view!r}; {nearest(str(view), recipe.data.views)}")
            if view in own and path.startswith("scheme."):
                raise RecipeError(
                    f"{path}: the view {view!r} has inputs of its own, and what the scheme trains is evaluated on the "
                    "student's; give it to a teacher that is trained before: teacher.view"
                )


def _check_assistant(recipe: Recipe, name: str, plugins: Plugins) -> None:
    if plugins.load("assistant", name).has_teacher:
        if recipe.teacher is None:
            raise RecipeError("assistant: it stands between a teacher and a student; give the section teacher")
        return
    if recipe.all_teachers:
        raise RecipeError(f"assistant {name!r} begins with the student alone: remove the section teacher")
    if "direct" in recipe.controls:
        raise RecipeError("controls: direct is the student of the teacher alone, and there is no teacher; remove it")
