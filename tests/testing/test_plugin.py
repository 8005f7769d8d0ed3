"""Every check of a plugin has a plugin with one defect that it catches."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from kdx.testing import CheckFailed, check_plugin, checks_of

SOUND = """
from kdx import Spec, hookimpl

@hookimpl
def kdx_knowledge():
    return [Spec("sound-loss", "kdx.knowledge.hint:Hint", "a hint under another name")]
"""
# what is replaced in the sound one, by what -> the check that catches it, what it says
MUTANTS = {
    "no hook": ("@hookimpl", "", "hooks", "write @kdx.hookimpl above it"),
    "an unknown hook": ("kdx_knowledge", "kdx_knowlege", "hooks", "did you mean 'kdx_knowledge'"),
    "an unknown argument": ("kdx_knowledge()", "kdx_knowledge(run)", "hooks", "'run'"),
    "no Spec": ("return", "return [1]; return", "lists_components", "expected kdx.Spec objects"),
    "no summary": ("a hint under another name", "", "lists_components", "the summary is ''"),
    "two lines": ("a hint under", "a hint\\nunder", "lists_components", "not one line"),
    "snake case": ("sound-loss", "sound_loss", "names", "'sound_loss': the name is not kebab-case"),
    "a name of kdx": ("sound-loss", "soft-targets", "names", "'soft-targets' is claimed by"),
    "no module": ("kdx.knowledge.hint", "kdx.knowledge.hnt", "targets", "does not import"),
    "another kind": ("hint:Hint", "hint:hint", "targets", "not a subclass of kdx.Knowledge"),
    "another hook": ("kdx_knowledge", "kdx_schemes", "targets", "not a subclass of kdx.Scheme"),
    "no callable": ("kdx_knowledge", "kdx_models", "targets", "not a class or function"),
    "no docstring": ("kdx_knowledge", "kdx_datasets", "targets", "has no docstring"),
    "a key of recipes": ("", "", "targets", "'weight' cannot be given in a recipe, where it is a key of"),
    "imports torch": ("from kdx", "import torch\nfrom kdx", "imports_no_torch", "imports torch"),
    "lists with torch": ("return", "import torch; return", "imports_no_torch", "imports torch"),
    "a name in capitals": ("", "", "entry_point", "'Sound' is not kebab-case"),
}
TARGETS = {
    "no callable": "kdx.knowledge.hint:__all__",
    "no docstring": "kdx_test_undocumented:make",
    "a key of recipes": "kdx_test_weighted:Weighted",
}
WEIGHTED = """
from kdx.knowledge.hint import Hint

class Weighted(Hint):
    'A hint with a weight of its own.'

    def __init__(self, student: str, teacher: str, weight: float = 1.0) -> None:
        super().__init__(student, teacher)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """``package(code, name)`` installs a plugin of one module."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(code: str, name: str) -> str:
        (tmp_path / "kdx_test_plugin.py").write_text(code)
        (tmp_path / "kdx_test_undocumented.py").write_text("def make(): pass")
        (tmp_path / "kdx_test_weighted.py").write_text(WEIGHTED)
        monkeypatch.delitem(sys.modules, "kdx_test_plugin", raising=False)
        entries = EntryPoints([EntryPoint(name, "kdx_test_plugin", "kdx")])
        monkeypatch.setattr("kdx.testing.plugin.entry_points", lambda group: entries)
        return name

    return install


def test_a_sound_plugin_passes_everything(package) -> None:
    check_plugin(package(SOUND, "sound"))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_defect_of_a_plugin_is_caught(package, mutant) -> None:
    old, new, name, found = MUTANTS[mutant]
    code = SOUND.replace(old, new) if old else SOUND
    code = code.replace("kdx.knowledge.hint:Hint", TARGETS.get(mutant, "kdx.knowledge.hint:Hint"))
    plugin = package(code, "Sound" if name == "entry_point" else "sound")
    (check,) = [check for check in checks_of(plugin) if check.name == name]
    with pytest.raises(CheckFailed) as caught:
        check()
    assert found in str(caught.value)


def test_every_check_of_plugins_has_a_mutant(package) -> None:
    assert {check.name for check in checks_of(package(SOUND, "sound"))} == {name for _, _, name, _ in MUTANTS.values()}
