"""From a recipe to a run folder imports run one way."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.test_imports import runtime_imports

ROOM = Path(__file__).parents[2] / "kdx" / "experiment"

WALK = ["recipe", "components", "plan", "assembly", "run_folder", "stage_runner", "experiment"]
"""A recipe on its way to a run folder."""


def imports() -> dict[str, set[str]]:
    """Module of the room -> those of the room that it imports, those inside functions included."""
    names = {path.stem for path in ROOM.glob("*.py")} - {"__init__"}
    found = {name: runtime_imports(ast.parse((ROOM / f"{name}.py").read_text())) for name in names}
    return {
        name: {inner for inner in names - {name} if any(f"kdx.experiment.{inner}." in f"{each}." for each in imported)}
        for name, imported in found.items()
    }


def test_the_walk_of_a_recipe_never_climbs_back() -> None:
    graph = imports()
    for place, name in enumerate(WALK):
        assert not graph[name] & set(WALK[place + 1 :]), name
