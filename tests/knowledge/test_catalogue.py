"""The declarations of every registered knowledge component."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import kdx
from kdx.registry import Plugins

COMPONENTS = {
    name: found[0].spec for name, found in Plugins(entries=(), blocked=(), trace=False).components("knowledge").items()
}


@pytest.mark.parametrize("name", COMPONENTS)
def test_it_names_its_paper_with_year_and_link(name):
    spec = COMPONENTS[name]
    assert spec.paper is not None
    assert re.search(r"\b(19|20)\d\d\b", spec.paper), "no year"
    assert len(spec.summary) <= 80


@pytest.mark.parametrize("name", COMPONENTS)
def test_its_docstring_states_loss_gradients_options_and_paper(name):
    component = kdx.plugins().load("knowledge", name)
    text = inspect.getdoc(component)
    assert issubclass(component, kdx.Knowledge)
    assert re.search(r"mean|averag|sum", text), "no reduction"
    if "variant" in inspect.signature(component).parameters:
        assert '"paper"' in text
        assert '"code"' in text
    for part in ("Loss: ", "T^2", "radient", "Args:", "Paper: ", "Example:", "https://"):
        assert part in text, f"{part!r} is missing"
    for option in (str(parameter).split(":")[0] for parameter in inspect.signature(component).parameters.values()):
        assert f"    {option}: " in text, f"option {option!r} is not described"


# The function of soft targets is kdx.ops.softmax_kl.
@pytest.mark.parametrize("name", sorted(COMPONENTS.keys() - {"soft-targets"}))
def test_its_module_offers_a_plain_function_beside_the_component(name):
    module = inspect.getmodule(kdx.plugins().load("knowledge", name))
    functions = [value for part in module.__all__ if inspect.isfunction(value := getattr(module, part))]
    assert functions
    assert all(inspect.getdoc(function) for function in functions)


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_table_in_the_readme_has_a_row_for_it_in_its_section(name):
    kind = kdx.plugins().load("knowledge", name).kind
    text = (Path(kdx.__file__).parent / "knowledge" / "README.md").read_text(encoding="utf-8")
    section = text.split(f"## {kind.capitalize()}\n")[1].split("\n## ")[0]
    row = next(line for line in section.splitlines() if line.startswith(f"| `{name}` |"))
    assert row.count("|") == 7
    assert "](https://" in row
