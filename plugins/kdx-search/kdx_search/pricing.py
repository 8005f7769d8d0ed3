"""The cost of students before they are trained, and the cheapest one of a space."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kdx import Plugins, Ref
from kdx.analysis import count_flops, measure_cost
from kdx.assistants import Produced, Structure
from kdx.authoring import Rule, isolated, trusting
from kdx.datasets import View
from kdx.errors import RecipeError
from kdx.experiment import Assembly, ExperimentData, Recipe, stages_of
from kdx.students import DerivedStudent, Target
from kdx.teachers import Stored
from kdx_search.recipe_space import ends
from kdx_search.search_recipe import SearchRecipe

__all__ = ["UNIT", "Prices", "cost_of", "shown_cost"]

STUDENT = "distilled"
"""The stage whose student is searched for."""

UNIT = {"flops": "operations of one sample", "latency": "ms for one sample", "params": "parameters"}
"""The unit of a cost, in words."""

_REPEATS = 30


def cost_of(kind: str, model: nn.Module, example: Any) -> float:
    """The cost of a model by its name in a search, ``flops``, ``latency`` (milliseconds) or ``params``.

    Args:
        kind: which cost.
        model: what costs.
        example: the inputs of one sample as a batch.

    Raises:
        CountError: its operations cannot be counted.
    """
    if kind == "params":
        return float(sum(parameter.numel() for parameter in model.parameters()))
    if kind == "latency":
        return measure_cost(model, example, repeats=_REPEATS).latency_ms
    return float(count_flops(model, example))


def shown_cost(kind: str, cost: float) -> str:
    """A cost with its unit, for a sentence."""
    return f"{cost:.3g} ms" if kind == "latency" else f"{cost:,.0f} {UNIT[kind]}"


class Prices:
    """Says what the student at a point of the space costs, and whether that is within the limits.

    Nothing is trained for it: a student that is derived from its teacher is derived from an untrained one, which has
    the same shapes. One that needs the trained teacher or data to have a shape is priced when its trial begins.

    Args:
        search: what is searched.
    """

    def __init__(self, search: SearchRecipe) -> None:
        self.search = search
        self.rule = Rule.of(search.trust, search.plugins)
        self._data: ExperimentData | None = None
        self._known: dict[str, dict[str, float] | None] = {}
        self._teacher: dict[str, float] = {}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The measured costs: the cost that is weighed against quality, then what else is limited."""
        settings = self.search.settings
        return tuple(dict.fromkeys((settings.cost, *settings.limits)))

    def of(self, values: Mapping[str, Any]) -> dict[str, float] | None:
        """Kind -> cost of the student at a point; None where it is not known before its teacher is trained.

        Raises:
            RecipeError: the model cannot be built, or not be counted.
        """
        recipe = self.search.trial(values)
        models = [recipe.student.model, *(each.model for each in recipe.all_teachers.values())]
        key = json.dumps([model.as_dict() for model in models], sort_keys=True)
        if key not in self._known:
            self._known[key] = self._price(recipe)
        return self._known[key]

    def measured(self, model: nn.Module, example: Any) -> dict[str, float]:
        """Kind -> cost of a student that is built."""
        return {kind: cost_of(kind, model, example) for kind in self.kinds}

    def excess(self, values: Mapping[str, Any], costs: Mapping[str, float]) -> dict[str, float]:
        """Limited cost -> how far a point is above its limit, as a share of the limit; at most 0 within it."""
        return {
            kind: costs[kind] / self._most(kind, limit, values) - 1
            for kind, limit in self.search.settings.limits.items()
        }

    def refusal(self, values: Mapping[str, Any], costs: Mapping[str, float]) -> str | None:
        """Why a student may not be trained, None for one within the limits."""
        for kind, over in self.excess(values, costs).items():
            if over > 0:
                most = self._most(kind, self.search.settings.limits[kind], values)
                return (
                    f"it costs {shown_cost(kind, costs[kind])}, and search.max_{kind} allows {shown_cost(kind, most)}"
                )
        return None

    def check_reachable(self) -> None:
        """Checks that some student of the space is within every limit, where costs are known before training.

        The cheapest student is looked for one dimension after the other, as long as that helps; the cost of structures
        grows with each of their sizes, so that finds it.

        Raises:
            RecipeError: even the cheapest that was found is above a limit; what it costs and where it is are named.
        """
        for kind, limit in self.search.settings.limits.items():
            found = self._cheapest(kind)
            if found is None:
                continue
            point, cost = found
            if cost > (most := self._most(kind, limit, point)):
                shown = ", ".join(f"{name}={value}" for name, value in point.items())
                raise RecipeError(
                    f"search.max_{kind}: no student of the space costs {shown_cost(kind, most)} or less; the nearest "
                    f"that was found costs {shown_cost(kind, cost)}, with {shown}: allow that, or widen the space"
                )

    def _cheapest(self, kind: str) -> tuple[dict[str, Any], float] | None:
        space = self.search.space
        point = space.first()
        best = self.of(point)
        if best is None:
            return None
        lowest, again = best[kind], True
        while again:
            again = False
            for name in list(point):
                if name not in point:
                    continue
                spec = space.dimensions()[name]
                for value in ends(spec):
                    moved = space.moved(point, name, value)
                    costs = self.of(moved)
                    if costs is None:
                        return None
                    if costs[kind] < lowest:
                        point, lowest, again = moved, costs[kind], True
        return point, lowest

    def _price(self, recipe: Recipe) -> dict[str, float] | None:
        with trusting(self.rule), isolated():
            assembly = self._assembly(recipe)
            model = assembly.stages[STUDENT].model
            if isinstance(model, Structure) and not _only_shapes(model, assembly.plugins):
                return None
            return self.measured(assembly.build(assembly.ref(STUDENT), STUDENT), assembly.example)

    def _most(self, kind: str, limit: Target, values: Mapping[str, Any]) -> float:
        """A limit in the unit of its cost; a share is one of what the teacher costs."""
        if limit.share is None:
            return limit.budget(0)
        recipe = self.search.trial(values)
        if recipe.teacher is None or recipe.teacher.model is None:
            raise RecipeError(
                f"search.max_{kind}: a share is one of the teacher's cost, and there is no teacher's model"
            )
        key = f"{kind} {recipe.teacher.model!r}"
        if key not in self._teacher:
            with trusting(self.rule), isolated():
                assembly = self._assembly(recipe)
                teacher = assembly.build(recipe.teacher.model, "teacher")
                self._teacher[key] = cost_of(kind, teacher, assembly.example_of("teacher"))
        return limit.budget(self._teacher[key])

    def _assembly(self, recipe: Recipe) -> Assembly:
        if self._data is None:
            self._data = ExperimentData(recipe, self.search.plugins)
        stages = stages_of(recipe, self.search.plugins)
        return Assembly(recipe, stages, _Untrained(), data=self._data, plugins=self.search.plugins)


def _only_shapes(structure: Structure, plugins: Plugins) -> bool:
    """Whether a structure needs nothing of its teacher but the shapes."""
    if not isinstance(structure, DerivedStudent):
        return False
    return not plugins.load("student", Ref.of(structure.options["how"]).name).needs_data


class _Untrained:
    """Models as they are drawn, in place of those of earlier stages; what is made of them is kept in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, Produced] = {}

    def produced(self, stage: str) -> Produced | None:
        return self.kept.get(stage)

    def keep(self, stage: str, produced: Produced) -> None:
        self.kept[stage] = produced

    def weights(self, stage: str) -> Path | None:
        return None

    def result(self, stage: str) -> Mapping[str, Any]:
        raise RecipeError(f"the result of {stage!r} is not known before it is trained")

    def quality(self, stage: str) -> float:
        raise RecipeError(f"the quality of {stage!r} is not known before it is trained")

    def stored(self, teacher: str, rows: View, model: nn.Module, class_dim: int | None) -> Stored:
        raise RecipeError(f"there is no store of {teacher!r} before it is trained")
