"""Recipes found by name, read from YAML, overridden and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from kdx.errors import RecipeError, StudentError, TrustError, UnknownNameError, nearest
from kdx.experiment.recipe import Recipe
from kdx.experiment.recipe_checks import check_components
from kdx.experiment.recipe_texts import check_interpolation, check_printable
from kdx.options import problems
from kdx.registry import Plugins
from kdx.trust import Rule, Trusted, trusting

__all__ = ["check_recipe", "find_recipe", "load_recipe", "recipe_names"]


def recipe_names() -> dict[str, Path]:
    """Name -> file of the recipes that come with kdx."""
    folder = Path(str(resources.files("kdx") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(recipe: str | Path) -> Path:
    """The file of a recipe given by name or by path.

    Raises:
        RecipeError: there is neither.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if not path.is_file():
            raise RecipeError(f"there is no recipe file {str(path)!r}")
        return path
    known = recipe_names()
    if str(recipe) not in known:
        raise RecipeError(f"there is no recipe {str(recipe)!r}; {nearest(str(recipe), known)}. A path works as well")
    return known[str(recipe)]


def load_recipe(
    recipe: str | Path,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    plugins: Plugins | None = None,
    trust: Trusted = (),
) -> Recipe:
    """Reads, overrides and checks a recipe.

    Args:
        recipe: name or path.
        overrides: ``["train.epochs=2"]``, or a mapping with dotted or nested keys.
        plugins: where components come from; None takes those installed.
        trust: modules that the recipe may name beside kdx and the plugins, see :mod:`kdx.trust`; ``"oc.env"`` lets it
            read environment variables.

    Raises:
        RecipeError: names the path to the wrong key, what was expected, what came, and the nearest name.
        TrustError: the recipe names code that it may not run, or reads the environment.
    """
    path, rule = find_recipe(recipe), Rule.of(trust, plugins)
    try:
        loaded = OmegaConf.load(path)
        for text in (OmegaConf.to_container(loaded), overrides):
            check_interpolation(text, f"recipe {path.name}", rule)  # before they meet: merging reads references
        config = OmegaConf.merge(loaded, _overriding(overrides))
        values = OmegaConf.to_container(config, resolve=True)
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        if isinstance(error, RecipeError | TrustError):
            raise
        raise RecipeError(f"recipe {path.name}: {error}") from error
    return check_recipe(values, path.name, plugins=plugins, trust=trust)


def _overriding(overrides: Sequence[str] | Mapping[str, Any]) -> DictConfig:
    config = OmegaConf.create({})
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            OmegaConf.update(config, key, value, merge=True, force_add=True)
        return config
    if wrong := [item for item in overrides if "=" not in item]:
        raise RecipeError(f"override {wrong[0]!r} must have the form key.sub=value, as in train.epochs=2")
    return OmegaConf.from_dotlist(list(overrides))


def check_recipe(values: Any, where: str = "recipe", *, plugins: Plugins | None = None, trust: Trusted = ()) -> Recipe:
    """Checks plain values, every component's options included.

    Args:
        values: the sections of a recipe.
        where: how messages name it.
        plugins: where components come from; None takes those installed.
        trust: see :func:`load_recipe`.

    Raises:
        RecipeError: see :func:`load_recipe`.
        TrustError: see :func:`load_recipe`.
    """
    from kdx.students.config import check_targets  # imports torch

    rule = Rule.of(trust, plugins)
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where}: a recipe must be a mapping of sections, got {type(values).__name__}")
    check_printable(values, where)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        lines = [
            _with_nearest(line, item["loc"], item["type"])
            for line, item in zip(problems(error), error.errors(), strict=True)
        ]
        raise RecipeError(f"{where}: " + "\n".join(lines)) from error
    try:
        with trusting(rule):
            check_targets(recipe.dump(), "", rule)
            check_components(recipe, rule.plugins)
    except TrustError as error:
        raise TrustError(f"{where}: {error}") from error
    except (UnknownNameError, RecipeError, StudentError) as error:
        raise RecipeError(f"{where}: {error}") from error
    return recipe


def _with_nearest(line: str, location: tuple[int | str, ...], kind: str) -> str:
    if kind != "extra_forbidden":
        return line
    section: Any = Recipe
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation
        section = next(
            (item for item in (annotation, *getattr(annotation, "__args__", ())) if hasattr(item, "model_fields")), None
        )
        if section is None:
            return line
    path = ".".join(str(part) for part in location)
    return f"{path}: unknown key; {nearest(str(location[-1]), section.model_fields)}"
