"""Recipes found by name, read from YAML, overridden and checked."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from kdx.errors import FileError, RecipeError, StudentError, TrustError, UnknownNameError, nearest
from kdx.experiment.recipe import Recipe
from kdx.experiment.recipe_checks import check_components
from kdx.experiment.recipe_texts import check_interpolation, check_printable
from kdx.files import read_text
from kdx.options import problems
from kdx.own_files import OwnFiles
from kdx.ref import Ref
from kdx.registry import Plugins, default_plugins
from kdx.trust import Rule, Trusted, trusting

__all__ = ["check_recipe", "find_recipe", "load_recipe", "plugins_beside", "recipe_names"]


ELSEWHERE = {"shakespeare-lm": "kdx-text"}
"""Name -> package of the recipes that come with the packages in kdx's own repository."""


def recipe_names(plugins: Plugins | None = None) -> dict[str, Path]:
    """Name -> file of the recipes that come with kdx and the installed plugins."""
    return (plugins or default_plugins()).recipes()


def find_recipe(recipe: str | Path, plugins: Plugins | None = None) -> Path:
    """The file of a recipe given by name or by path.

    Raises:
        RecipeError: there is neither.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if path.is_dir():
            raise RecipeError(f"{str(path)!r} is a folder; give the recipe file")
        if not path.exists():
            raise RecipeError(f"there is no recipe file {str(path)!r}")
        return path
    known = recipe_names(plugins)
    if str(recipe) not in known:
        if (package := ELSEWHERE.get(str(recipe))) is not None:
            raise RecipeError(f"there is no recipe {str(recipe)!r} yet: it comes with {package}; pip install {package}")
        raise RecipeError(f"there is no recipe {str(recipe)!r}; {nearest(str(recipe), known)}. A path works as well")
    return known[str(recipe)]


def plugins_beside(recipe: str | Path | Mapping[str, Any] | Recipe, plugins: Plugins | None = None) -> Plugins:
    """The registry for a recipe, which knows the Python files that the recipe may name, ``my_models.py:Net``.

    Those of a recipe in a file are in the file's folder, or below it; those of one by name, or of plain values, in the
    working directory. A registry that knows files already is taken as it is.
    """
    plugins = plugins or default_plugins()
    if plugins.files is not None:
        return plugins
    named = not isinstance(recipe, str | Path) or str(recipe) in recipe_names(plugins)
    return plugins.beside(OwnFiles(Path.cwd() if named else Path(str(recipe)).parent))


def load_recipe(
    recipe: str | Path | Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    plugins: Plugins | None = None,
    trust: Trusted = (),
) -> Recipe:
    """Reads, overrides and checks a recipe.

    Args:
        recipe: name or path, or the sections as plain values.
        overrides: ``["train.epochs=2"]``, or a mapping with dotted or nested keys. A mapping with ``name`` is a
            component and takes the place of what is there, every other one is merged into it.
        plugins: where components come from; None takes those installed, and the files of :func:`plugins_beside`.
        trust: modules that the recipe may name beside kdx and the plugins, see :mod:`kdx.trust`; ``"oc.env"`` lets it
            read environment variables.

    Raises:
        RecipeError: names the path to the wrong key, what was expected, what came, and the nearest name.
        TrustError: the recipe names code that it may not run, or reads the environment.
    """
    plugins = plugins_beside(recipe, plugins)
    file = None if isinstance(recipe, Mapping) else find_recipe(recipe, plugins)
    rule, where = Rule.of(trust, plugins), "recipe" if file is None else file.name
    try:
        config = OmegaConf.create(dict(recipe)) if isinstance(recipe, Mapping) else _read(find_recipe(recipe, plugins))
        for text in (OmegaConf.to_container(config), overrides):
            check_interpolation(text, f"recipe {where}", rule)  # before they meet: merging reads references
        for key, value in _leaves(_changes(overrides)):
            OmegaConf.update(config, key, value, merge=False, force_add=True)
        values = OmegaConf.to_container(config, resolve=True)
    except RecursionError:
        raise RecipeError(f"recipe {where}: it is nested too deeply; a recipe has some ten levels") from None
    except (YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
        if isinstance(error, RecipeError | TrustError | FileError):
            raise
        raise RecipeError(f"recipe {where}: {error}") from error
    return check_recipe(values, where, plugins=plugins, trust=trust)


def _read(path: Path) -> DictConfig:
    """The content of a recipe file, as it stands there."""
    found = OmegaConf.load(io.StringIO(read_text(path, "recipe")))
    if not isinstance(found, DictConfig):
        raise RecipeError(f"recipe {path.name}: a recipe must be a mapping of sections, got a list")
    return found


def _changes(overrides: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """The overrides as plain values: key, dotted or not, -> value."""
    if isinstance(overrides, Mapping):
        return {key: value.as_dict() if isinstance(value, Ref) else value for key, value in overrides.items()}
    changes: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise RecipeError(f"override {item!r} must have the form key.sub=value, as in train.epochs=2")
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
        changes[key] = parsed["value"]
    return changes


def _leaves(changes: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key -> value of what is replaced as a whole: a component, or what is no mapping."""
    for key, value in changes.items():
        place = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value and "name" not in value:
            yield from _leaves(value, place)
        else:
            yield place, value


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
        if str(part) not in section.model_fields:
            continue  # a name in a mapping of sections
        annotation = section.model_fields[str(part)].annotation
        section = next(
            (item for item in (annotation, *getattr(annotation, "__args__", ())) if hasattr(item, "model_fields")), None
        )
        if section is None:
            return line
    path = ".".join(str(part) for part in location)
    return f"{path}: unknown key; {nearest(str(location[-1]), section.model_fields)}"
