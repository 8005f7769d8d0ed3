"""A recipe with a section ``search``: what is searched for, where, at what cost."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from yaml import YAMLError

from kdx import Plugins
from kdx.authoring import Rule, Trusted, problems, read_text, trusting
from kdx.errors import FileError, KdxError, RecipeError, TrustError, nearest
from kdx.experiment import Recipe, check_interpolation, check_printable, load_recipe, plugins_beside, stages_of
from kdx.students import Target, parse_target
from kdx_search.recipe_space import RecipeSpace

__all__ = ["SearchRecipe", "Settings", "changes_of", "load_search", "search_recipes"]

SECTION = "search"
LIMITS = {"max_flops": "flops", "max_latency": "latency", "max_params": "params"}
"""Key of the section -> what it limits."""


class Settings(BaseModel):
    """The section ``search`` of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    space: dict[str, Any] = Field(description="keys of the recipe and what they may be; see RecipeSpace")
    trials: int = Field(20, ge=1, description="students that are distilled for a short time")
    epochs: int | None = Field(None, ge=1, description="epochs of that short distillation; 2 if steps is not given")
    steps: int | None = Field(None, ge=1, description="optimizer steps of it instead of epochs")
    cost: Literal["flops", "latency", "params"] = Field(
        "flops", description="what is weighed against quality; latency is measured, so not the same on every run"
    )
    max_flops: str | float | None = Field(None, description="most operations of one sample: 600k, 2M, or 25% (teacher)")
    max_latency: str | float | None = Field(None, description="longest time of one sample: 2.5ms, or 50% (teacher)")
    max_params: str | float | None = Field(None, description="most parameters: 60k, or 25% (teacher)")
    sampler: Literal["tpe", "random"] = Field("tpe", description="tpe learns from the trials, random is the control")
    prune: bool = Field(True, description="end a trial that falls behind those that cost no more")
    tolerance: float = Field(
        0.0, ge=0, description="the cheapest student within this distance of the best quality is chosen, in its unit"
    )
    seconds: float | None = Field(None, gt=0, description="begin no trial once all trials took so long together")
    compute: float | None = Field(
        None, gt=0, description="begin no trial once all trials took so many operations; makes two searches comparable"
    )

    @model_validator(mode="after")
    def _one_length(self) -> Settings:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps of the short distillation, and not both")
        for key, kind in LIMITS.items():
            if getattr(self, key) is not None:
                parse_target(kind, getattr(self, key))  # type: ignore[arg-type]
        return self

    @property
    def length(self) -> dict[str, Any]:
        """The overrides of a recipe by which its student is distilled for a short time."""
        if self.steps is not None:
            return {"train.steps": self.steps}
        return {"train.epochs": self.epochs or 2, "train.steps": None}

    @property
    def limits(self) -> dict[str, Target]:
        """The limited costs (``flops``, ``latency``, ``params``) -> how."""
        found = {kind: getattr(self, key) for key, kind in LIMITS.items()}
        return {kind: parse_target(kind, value) for kind, value in found.items() if value is not None}  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class SearchRecipe:
    """A search that is checked: every option of its space makes a recipe that plans.

    Args:
        name: of the recipe.
        settings: the section ``search``.
        space: what is searched.
        sections: the other sections, which are a recipe once the space is filled in.
        plugins: where components come from.
        trust: see :func:`kdx.run`.
    """

    name: str
    settings: Settings
    space: RecipeSpace
    sections: dict[str, Any]
    plugins: Plugins
    trust: Trusted = ()

    def trial(self, values: Mapping[str, Any], store: Path | None = None) -> Recipe:
        """The recipe of a trial: one point of the space, a short distillation, no controls.

        Args:
            values: of the dimensions that are there at the point.
            store: folder of the teacher's outputs that all trials share, if they do.
        """
        return self._recipe(self.space.overrides(values) | self.settings.length | {"controls": []}, store)

    def whole(self, values: Mapping[str, Any], store: Path | None = None) -> Recipe:
        """The recipe by which the student at one point of the space is distilled to the end."""
        return self._recipe(self.space.overrides(values), store)

    @property
    def shares_store(self) -> bool:
        """Whether all trials learn from one store of the teacher's outputs, as a recipe with a store lets them."""
        recipe = self.trial(self.space.first())
        own = recipe.teacher.store if recipe.teacher else None
        return (
            own is not None and own.folder is None and not any(key.startswith("teacher") for key in self.space.written)
        )

    @property
    def identity(self) -> dict[str, Any]:
        """The values that make two searches one: all but how many trials they take and which student is chosen."""
        free = {"trials", "tolerance", "seconds", "compute"}
        written = {SECTION: self.settings.model_dump(mode="json", exclude=free), **self.sections}
        plain: dict[str, Any] = json.loads(json.dumps(written, default=str))
        return plain

    def as_dict(self) -> dict[str, Any]:
        """The recipe as it may be written."""
        return {SECTION: self.settings.model_dump(mode="json"), **self.sections}

    def _recipe(self, overrides: Mapping[str, Any], store: Path | None = None) -> Recipe:
        found = load_recipe(self.sections, overrides, plugins=self.plugins, trust=self.trust)
        if store is None or found.assistant is not None:  # the store of an assistant is another one
            return found
        shared = {**overrides, "teacher.store.folder": str(store)}
        return load_recipe(self.sections, shared, plugins=self.plugins, trust=self.trust)


def search_recipes() -> dict[str, Path]:
    """Name -> file of the searches that come with this package."""
    folder = Path(str(resources.files("kdx_search") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_search(
    recipe: str | Path | Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    plugins: Plugins | None = None,
    trust: Trusted = (),
) -> SearchRecipe:
    """Reads and checks a recipe with a section ``search``.

    Args:
        recipe: name of a search of this package, path of a YAML file, or its sections as plain values.
        overrides: ``["search.trials=8", "train.epochs=4"]``, or a mapping; see :func:`kdx.run`.
        plugins: where components come from; None takes those installed.
        trust: see :func:`kdx.run`; what is named within the space is held to it too.

    Raises:
        RecipeError: a key of the section, a range, or a recipe at one end of a range or with one option of a choice is
            wrong; the key and the value of the space are named.
        TrustError: something names code that it may not run.
    """
    where = recipe if isinstance(recipe, Mapping) else _find(recipe)
    plugins = plugins_beside(where, plugins)
    name = "search" if isinstance(where, Mapping) else where.stem
    rule = Rule.of(trust, plugins)
    values = _read(where, name, rule)
    changes = overrides if isinstance(overrides, Mapping) else changes_of(overrides)
    check_interpolation(changes, f"recipe {name}", rule)
    for key, value in changes.items():
        OmegaConf.update(values, key, value, merge=isinstance(value, Mapping) and "name" not in value, force_add=True)
    try:
        sections: Any = OmegaConf.to_container(values, resolve=True)
    except OmegaConfBaseException as error:
        raise RecipeError(f"recipe {name}: {error}") from error
    check_printable(sections, f"recipe {name}")
    written = sections.pop(SECTION, None)
    if written is None:
        raise RecipeError(
            f"recipe {name}: it has no section search, which says what to search: search: {{trials: 20, space: "
            "{student.model.width: {low: 4, high: 16}}}"
        )
    try:
        settings = Settings.model_validate(written)
    except ValidationError as error:
        raise RecipeError(f"recipe {name}: " + "\n".join(f"search.{line}" for line in _lines(error))) from error
    found = SearchRecipe(name, settings, RecipeSpace(settings.space), sections, rule.plugins, trust)
    _check_points(found, rule)
    return found


def _find(recipe: str | Path) -> Path:
    path, known = Path(recipe), search_recipes()
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if not path.is_file():
            raise RecipeError(f"there is no recipe file {str(path)!r}")
        return path
    if str(recipe) not in known:
        raise RecipeError(f"there is no search {str(recipe)!r}; {nearest(str(recipe), known)}. A path works as well")
    return known[str(recipe)]


def _read(where: Path | Mapping[str, Any], name: str, rule: Rule) -> DictConfig:
    try:
        if isinstance(where, Mapping):
            config = OmegaConf.create(dict(where))
        else:
            config = OmegaConf.load(io.StringIO(read_text(where, "recipe")))  # type: ignore[assignment]
        if not isinstance(config, DictConfig):
            raise RecipeError(f"recipe {name}: a recipe must be a mapping of sections, got a list")
        check_interpolation(OmegaConf.to_container(config), f"recipe {name}", rule)
        return config
    except RecursionError:
        raise RecipeError(f"recipe {name}: it is nested too deeply; a recipe has some ten levels") from None
    except (YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
        if isinstance(error, RecipeError | TrustError | FileError):
            raise
        raise RecipeError(f"recipe {name}: {error}") from error


def changes_of(overrides: Sequence[str]) -> dict[str, Any]:
    """Overrides of the form ``key.sub=value`` as a mapping.

    Raises:
        RecipeError: one has another form.
    """
    found: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise RecipeError(f"override {item!r} must have the form key.sub=value, as in search.trials=8")
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
        found[key] = parsed["value"]
    return found


def _lines(error: ValidationError) -> list[str]:
    lines = []
    for line, item in zip(problems(error), error.errors(), strict=True):
        key = str(item["loc"][-1]) if item["loc"] else ""
        unknown = item["type"] == "extra_forbidden"
        lines.append(f"{key}: unknown key; {nearest(key, Settings.model_fields)}" if unknown else line.lstrip(": "))
    return lines


def _check_points(found: SearchRecipe, rule: Rule) -> None:
    """Checks and plans the recipe at every point that shows an option or an end of a range."""
    for values in found.space.probes():
        shown = ", ".join(f"{name}={value}" for name, value in values.items())
        for make in (found.trial, found.whole):
            try:
                recipe = make(values)
                with trusting(rule):
                    stages_of(recipe, rule.plugins)
            except TrustError as error:
                raise TrustError(f"search.space at {shown}: {error}") from error
            except KdxError as error:
                raise RecipeError(f"search.space at {shown}: {error}") from error
