"""The plan of an experiment: the stages that a recipe stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import ValidationError

from kdx.assistants.base import Assistant
from kdx.errors import PlanError, RecipeError
from kdx.experiment.components import check_component, locating, model_options_of, needs_of
from kdx.experiment.recipe import Recipe, Train
from kdx.options import problems
from kdx.ref import Ref
from kdx.registry import Plugins, default_plugins
from kdx.stage import Stage, Structure, in_order
from kdx.students.from_recipe import structure_of

__all__ = ["assistant_of", "stages_of", "train_of"]


def stages_of(recipe: Recipe, plugins: Plugins | None = None) -> list[Stage]:
    """The stages of a recipe, each after those it needs: teachers, controls, then the student's.

    Teachers that the scheme trains along have no stage. An assistant plans what comes after the controls; it always
    gets the student alone, which says how wide the gap is that it has to bridge.

    Args:
        recipe: a checked recipe.
        plugins: where components come from; None takes those installed.

    Raises:
        PlanError: the assistant's stages do not fit together.
        RecipeError: a stage names a scheme, a knowledge component or an option that there is not.
    """
    plugins = plugins or default_plugins()
    student = recipe.student.model
    if recipe.student.weights and isinstance(_structure(student, plugins), Structure):
        raise RecipeError(
            "student.weights: the student is made when its stage begins, with the weights that it starts from (with "
            "how= its teacher's); give the config of the student that the weights are of instead, as model: {name: "
            "derived, config: student.yaml}"
        )
    taught_along = plugins.load("scheme", recipe.scheme.name).trains_teacher
    teachers = {} if taught_along else recipe.all_teachers
    endless = [name for name, each in teachers.items() if each.trained_here and each.train and not each.train.steps]
    if recipe.data.stream and (without := endless):
        raise RecipeError(f"{without[0]}.train.steps: a stream has no end, so give the number of steps")
    if taught_along and any(section.store for section in recipe.all_teachers.values()):
        raise RecipeError(
            f"teacher.store: scheme {recipe.scheme.name!r} trains the teacher along, so what it says changes; remove it"
        )
    for name, section in recipe.all_teachers.items() if taught_along else ():
        if section.dtype or section.device or section.batch_statistics:
            raise RecipeError(
                f"{name}: scheme {recipe.scheme.name!r} trains the teacher along, as the student is trained; remove "
                "dtype, device and batch_statistics, which say how a finished one is held"
            )
        if section.train is None:
            raise RecipeError(
                f"{name}.train: none: scheme {recipe.scheme.name!r} trains the teacher along; remove it, or take a "
                "scheme whose teacher is finished, as offline"
            )
        if own := [key for key in Train.model_fields if getattr(section.train, key) != getattr(Train(), key)]:
            raise RecipeError(
                f"{name}.train: scheme {recipe.scheme.name!r} trains the teacher along, with the student and as the "
                f"section train says; got {', '.join(sorted(own))}; remove {name}.train, and set them in train"
            )
    if recipe.assistant and (told := recipe.told_teachers):
        raise RecipeError(
            f"{told[0]}.model: assistant {recipe.assistant.name!r} plans from the teacher's model; give it"
        )
    teachers = {name: section for name, section in teachers.items() if section.model}
    stages = [Stage(name, "teacher", section.model) for name, section in teachers.items() if section.model]
    if recipe.assistant and "alone" not in recipe.controls:
        stages.append(Stage("alone", "alone", student))
    for control in recipe.controls:
        if control == "direct":
            stages.append(Stage("direct", "distilled", student, tuple(teachers)))
        else:
            stages.append(Stage(control, control, student))
    assistant = assistant_of(recipe, plugins)
    if recipe.assistant is None or assistant is None:
        stages.append(Stage("distilled", "distilled", student, tuple(teachers)))
        return in_order(_made(stages, plugins))
    planned = assistant.plan((recipe.teacher.model if recipe.teacher else None) or student, student)
    if not isinstance(planned, Sequence) or not all(isinstance(stage, Stage) for stage in planned):
        raise PlanError(f"assistant {recipe.assistant.name!r}: expected a list of kdx.Stage, got {planned!r}")
    if not planned or planned[-1].name != "distilled":
        raise PlanError(
            f"assistant {recipe.assistant.name!r}: the last stage of a plan trains the student and is named "
            f"'distilled', got {planned[-1].name if planned else 'no stage'!r}"
        )
    for stage in planned:
        _check(stage, recipe, plugins)
    return in_order(_made([*stages, *planned], plugins))


def _made(stages: list[Stage], plugins: Plugins) -> list[Stage]:
    """The stages with structures in place of their names; stages that name the same one have the same object."""
    known: list[tuple[Ref | Structure, Ref | Structure]] = []
    found = []
    for stage in stages:
        model = next((made for name, made in known if name == stage.model), None)
        if model is None:
            known.append((stage.model, model := _structure(stage.model, plugins)))
        found.append(replace(stage, model=model))
    return found


def _structure(model: Ref | Structure, plugins: Plugins) -> Ref | Structure:
    with locating(f"model ({model.name})" if isinstance(model, Ref) else "model"):
        return structure_of(model, plugins)


def assistant_of(recipe: Recipe, plugins: Plugins) -> Assistant | None:
    """The recipe's assistant, if it has one.

    Raises:
        RecipeError: its options do not go together.
    """
    if recipe.assistant is None:
        return None
    with locating(f"assistant ({recipe.assistant.name})"):
        made: Assistant = plugins.make("assistant", recipe.assistant)
    return made


def train_of(stage: Stage, recipe: Recipe) -> Train:
    """The training of a stage: that of its teacher's section or of the student, with the keys that the stage overrides.

    Raises:
        RecipeError: the stage overrides a key that there is not, or with a wrong value.
    """
    section = recipe.all_teachers.get(stage.name) if stage.role == "teacher" else None
    train = (section.train or Train()) if section else recipe.train
    if not stage.train:
        return train
    try:
        return Train.model_validate(train.model_dump() | dict(stage.train))
    except ValidationError as error:
        raise RecipeError("; ".join(f"stage {stage.name}: train.{line}" for line in problems(error))) from error


def _check(stage: Stage, recipe: Recipe, plugins: Plugins) -> None:
    train_of(stage, recipe)
    if isinstance(stage.model, Ref):
        check_component(
            f"stage {stage.name}: model", "model", stage.model, plugins, given=model_options_of(recipe, plugins)
        )
    scheme = stage.scheme or recipe.scheme
    target = check_component(f"stage {stage.name}: scheme", "scheme", scheme, plugins)
    for name, term in (stage.knowledge or {}).items():
        check_component(f"stage {stage.name}: knowledge.{name}", "knowledge", term, plugins)
    taught = stage.role in ("assistant", "distilled") and not target.trains_teacher
    if taught and not stage.teachers and {"teacher", "teachers"} & needs_of(target):
        raise PlanError(
            f"stage {stage.name!r} names no teacher, and scheme {scheme.name!r} needs one: name earlier stages in "
            "teachers"
        )
