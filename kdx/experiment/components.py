"""The components that a recipe or a stage names, checked against their signatures."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kdx.errors import RecipeError, UnknownNameError
from kdx.options import check_options, check_takes
from kdx.ref import Ref
from kdx.registry import Kind, Plugins

__all__ = ["SUPPLIED", "check_component", "locating", "needs_of"]

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


def needs_of(scheme: type) -> frozenset[str]:
    """The parts that an experiment builds for a scheme: those of :data:`NEEDS` that its signature names."""
    return NEEDS & inspect.signature(scheme).parameters.keys()


@contextmanager
def locating(path: str) -> Iterator[None]:
    """Adds the place in the recipe to the error of a component that refuses its options.

    Raises:
        RecipeError: the component raised a ValueError or a TypeError, or needs a package that is not installed.
    """
    try:
        yield
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"{path}: {error}") from error


def check_component(path: str, kind: Kind, component: Ref, plugins: Plugins) -> Any:
    """Loads a component that a recipe (or a stage) names and checks its options.

    Raises:
        RecipeError: there is none of this name, or an option is wrong; ``path`` says where.
    """
    try:
        target = plugins.load(kind, component.name)
    except UnknownNameError as error:
        raise RecipeError(f"{path}.name: {error}") from error
    where, supplied = f"{path} ({component.name})", SUPPLIED.get(kind, frozenset())
    check_options(where, target, component.options, supplied=supplied)
    check_takes(where, target, () if kind == "scheme" else supplied)  # a scheme gets what its signature names
    return target
