"""The components that a recipe or a stage names, checked against their signatures."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kdx.errors import KdxError, RecipeError, TrustError, UnknownNameError
from kdx.options import check_options, check_takes
from kdx.ref import Ref
from kdx.registry import Kind, Plugins
from kdx.stage import Structure

if TYPE_CHECKING:
    from torch import nn

    from kdx.experiment.recipe import Recipe
    from kdx.tasks import Task

__all__ = [
    "SMOOTHED",
    "SUPPLIED",
    "check_component",
    "check_void",
    "is_structure",
    "locating",
    "model_options_of",
    "needs_of",
    "new_model",
    "task_of",
]

NEEDS = frozenset({"student", "teacher", "teachers", "peers", "task", "knowledge", "qualities"})
"""Parts that a scheme may name in its signature and that an experiment builds for it, see
:class:`kdx.experiment.assembly.Assembly`.
"""

SUPPLIED = {
    "scheme": NEEDS | {"student_output", "teacher_output"},
    "dataset": frozenset({"split"}),
    "model": frozenset({"num_classes", "input_shape"}),
}
"""Parameters that no recipe gives, by kind: an experiment fills them in itself, or they are functions."""


SMOOTHED = "label_smoothing"
"""The option of a task that the control with smoothed labels sets."""


def needs_of(scheme: type) -> frozenset[str]:
    """The parts that an experiment builds for a scheme: those of :data:`NEEDS` that its signature names."""
    return NEEDS & inspect.signature(scheme).parameters.keys()


def task_of(recipe: Recipe, plugins: Plugins, **options: Any) -> Task:
    """The task of a recipe, some of its options replaced or added.

    Raises:
        RecipeError: it refuses its options.
    """
    with locating(f"task ({recipe.task.name})"):
        task: Task = plugins.make("task", recipe.task.ref.with_options(**options))
    return task


@contextmanager
def locating(path: str) -> Iterator[None]:
    """Adds the place in the recipe to the error of a component that refuses its options.

    Raises:
        RecipeError: the component raised an error that is not one of kdx's own.
        TrustError: its options name code that is not trusted.
    """
    try:
        yield
    except TrustError as error:
        raise TrustError(f"{path}: {error}") from error
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"{path}: {error}") from error
    except KdxError:
        raise
    except Exception as error:
        raise RecipeError(f"{path} raised {type(error).__name__}: {error}") from error


def model_options_of(recipe: Recipe, plugins: Plugins) -> frozenset[str]:
    """The names of the options that a recipe's data set gives the models that take them, as ``vocabulary``."""
    return frozenset(getattr(plugins.load("dataset", recipe.data.dataset.name), "model_options", ()))


def new_model(ref: Ref, shape: Mapping[str, Any], facts: Mapping[str, Any], plugins: Plugins) -> nn.Module:
    """A new model for the shapes of the data, and those of their further facts that it takes.

    Raises:
        RecipeError: it refuses its options.
    """
    with locating(f"model ({ref.name})"):
        component = plugins.load("model", ref.name)
        if is_structure(component):
            raise ValueError(
                "it is made when the stage that trains it begins, from finished stages, so it cannot be built by "
                "itself; name it as the model of a stage alone, as in student.model"
            )
        parameters = inspect.signature(component).parameters
        taken = {name: value for name, value in facts.items() if name in parameters}
        model: nn.Module = plugins.make("model", ref, **shape, **taken)
    return model


def is_structure(component: Any) -> bool:
    """Whether a model component is a :class:`kdx.assistants.Structure`, which its stage makes, and not a model."""
    return inspect.isclass(component) and issubclass(component, Structure)


def check_component(
    path: str, kind: Kind, component: Ref, plugins: Plugins, *, given: frozenset[str] = frozenset()
) -> Any:
    """Loads a component that a recipe (or a stage) names and checks its options.

    ``given`` are further options that come from the data set if the component takes them.

    Raises:
        RecipeError: there is none of this name, or an option is wrong; ``path`` says where.
    """
    try:
        target = plugins.load(kind, component.name)
    except UnknownNameError as error:
        raise RecipeError(f"{path}.name: {error}") from error
    where, supplied = f"{path} ({component.name})", SUPPLIED.get(kind, frozenset())
    if is_structure(target):
        supplied = given = frozenset()  # the model that it is made into gets them
    check_options(where, target, component.options, supplied=supplied | given)
    check_takes(where, target, () if kind == "scheme" else supplied)  # a scheme gets what its signature names
    return target


def check_void(recipe: Recipe, task: Task, part: nn.Module) -> None:
    """Checks that knowledge on outputs says what it makes of hidden labels where the task calls them void.

    ``data.labelled`` hides a label as ``-100``. To a task with void elements that is a place where no teacher teaches,
    so knowledge that follows the task would learn nothing on the very rows whose labels are hidden.

    Args:
        recipe: its ``data.labelled`` hides labels.
        task: that of the recipe.
        part: knowledge, or a scheme with knowledge of its own.

    Raises:
        ValueError: ``void`` of a component in it is to be given.
    """
    from kdx.knowledge.base import Knowledge

    if recipe.data.labelled is None:
        return
    for component in part.modules():
        if not isinstance(component, Knowledge) or getattr(component, "void", False) is not None:
            continue
        if any(said is not None and said.void for said in map(task.responses_at, component.student_taps)):
            raise ValueError(
                f"{type(component).__name__}: data.labelled hides labels as -100, which to the task "
                f"{recipe.task.name!r} is void, where no teacher teaches: write void: false to be taught wherever the "
                "target is -100 (on rows without labels, and on borders and padding too), or void: true to be taught "
                "on the labels that are shown alone"
            )
