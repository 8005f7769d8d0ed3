"""The registry: isolation of broken packages, blocking, tracing, clashes and misspellings."""

from __future__ import annotations

import sys
import textwrap
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import kdx
from kdx.errors import PluginError, PluginWarning, UnknownNameError
from kdx.hookspecs import hookimpl
from kdx.registry import KINDS, SLOW, Kind, Plugins
from kdx.spec import Spec

GOOD = """
    from kdx import Spec, hookimpl
    @hookimpl
    def kdx_knowledge():
        return [Spec("good-loss", "kdx.knowledge.hint:Hint", "a hint under another name")]
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], EntryPoint]:
    """Writes a module and gives the entry point of a plugin package that holds it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, code: str) -> EntryPoint:
        module = f"kdx_test_{name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))
        monkeypatch.delitem(sys.modules, module, raising=False)
        return EntryPoint(name, module, "kdx")

    return write


def quiet(*entries: EntryPoint, **options) -> Plugins:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        return Plugins(entries=entries, **options)


def test_the_builtin_components_come_through_the_hooks_and_all_import() -> None:
    plugins = Plugins(entries=())
    assert {"soft-targets", "hint"} <= plugins.components("knowledge").keys()
    assert {"offline", "mutual", "supervised"} <= plugins.components("scheme").keys()
    for kind in KINDS:
        for name, (component, *others) in plugins.components(kind).items():
            assert not others
            assert callable(plugins.load(kind, name)), name
            assert name == name.lower()
            assert ("_" if kind != "op" else "-") not in name  # an op is called by its name
            assert component.spec.summary


def test_a_good_package_is_found(package) -> None:
    plugins = Plugins(entries=[package("good", GOOD)])
    assert plugins.components("knowledge")["good-loss"][0].plugin == "good"
    assert type(plugins.make("knowledge", "good-loss", student="a", teacher="b")).__name__ == "Hint"


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        (
            "from kdx import hookimpl\n@hookimpl\ndef kdx_knowledge(colour):\n    return []",
            r"\{'colour'\} are declared in the hookimpl but can not be found in the hookspec",
        ),
        (
            "from kdx import hookimpl\n@hookimpl\ndef kdx_knowlege():\n    return []",
            "unknown hook 'kdx_knowlege'; did you mean 'kdx_knowledge'",
        ),
        ("def kdx_knowledge():\n    return []", "its kdx_knowledge is not marked; write @kdx.hookimpl above it"),
        ("from kdx import Spec", "implements no hook; the entry point has to name the module of the functions that"),
    ],
    ids=["import error", "exit", "syntax error", "unknown argument", "misspelt hook", "no mark", "no hook"],
)
def test_a_broken_package_is_one_warning_and_the_rest_works(package, code: str, cause: str) -> None:
    entries = [package("bad", code), package("good", GOOD)]
    with pytest.warns(PluginWarning, match=cause) as caught:
        plugins = Plugins(entries=entries)
    assert len(caught) == 1
    assert "plugin 'bad'" in str(caught[0].message)
    assert "kdx_test_bad" in str(caught[0].message)
    assert "good-loss" in plugins.components("knowledge")
    info = next(info for info in plugins.infos if info.name == "bad")
    assert (info.status, info.module) == ("broken", "kdx_test_bad")
    with pytest.raises(PluginError, match=cause):
        Plugins(entries=entries, strict=True)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("return 1 / 0", "its kdx_models raised ZeroDivisionError: division by zero"),
        ("return ['cnn']", r"its kdx_models gave 'cnn', expected kdx.Spec objects in a list"),
        ("pass", r"its kdx_models gave None, expected kdx.Spec objects in a list"),
        ("return Spec('cnn', 'a:B', 'c')", r"its kdx_models gave Spec\(.*\), expected kdx.Spec objects in a list"),
        (
            "return [Spec('cnn', str, 'c')]",
            "Spec: target must be a string as 'package.module:Class', got <class 'str",
        ),
        ("return [Spec(str, 'a:B', 'c')]", "Spec: name must be a string, got <class 'str'>"),
    ],
    ids=["raises", "wrong type", "nothing", "not a list", "a class as target", "a class as name"],
)
def test_a_package_that_fails_to_list_its_components_is_left_out(package, code: str, cause: str) -> None:
    code = f"from kdx import Spec, hookimpl\n@hookimpl\ndef kdx_models():\n    {code}"
    plugins = Plugins(entries=[package("bad", code)])
    with pytest.warns(PluginWarning, match=cause):
        names = plugins.components("model")
    assert "cnn" not in names
    strict = Plugins(entries=[package("bad", code)], strict=True)
    with pytest.raises(PluginError, match=cause):
        strict.components("model")


def test_two_packages_with_one_component_name_are_an_error_that_names_both(package) -> None:
    plugins = Plugins(entries=[package("first", GOOD), package("second", GOOD)])
    with pytest.raises(PluginError, match=r"'first'.* and plugin 'second'.*KDX_PLUGINS_DISABLED=") as caught:
        plugins.make("knowledge", "good-loss", student="a", teacher="b")
    blocked = str(caught.value).rpartition("=")[2]
    again = Plugins(entries=[package("first", GOOD), package("second", GOOD)], blocked=[blocked])
    assert again.get("knowledge", "good-loss").plugin != blocked
    assert plugins.make("knowledge", "soft-targets", temperature=2.0).temperature == 2.0


def test_a_plugin_cannot_replace_a_builtin_silently(package) -> None:
    plugins = Plugins(entries=[package("shadow", GOOD.replace("good-loss", "soft-targets"))])
    with pytest.raises(PluginError, match="KDX_PLUGINS_DISABLED=shadow"):
        plugins.load("knowledge", "soft-targets")


def test_two_packages_with_one_plugin_name_keep_the_first(package) -> None:
    with pytest.warns(PluginWarning, match="already registered"):
        plugins = Plugins(entries=[package("same", GOOD), EntryPoint("same", "textwrap", "kdx")])
    assert "good-loss" in plugins.components("knowledge")


def test_a_target_that_does_not_import_is_raised_when_used(package) -> None:
    code = GOOD.replace("kdx.knowledge.hint:Hint", "kdx_no_such.module:Loss")
    plugins = Plugins(entries=[package("late", code)])
    assert "good-loss" in plugins.components("knowledge")
    with pytest.raises(PluginError, match=r"'good-loss' of plugin 'late'.*'kdx_no_such.module:Loss'"):
        plugins.make("knowledge", "good-loss")


@pytest.mark.parametrize("target", ["kdx.knowledge.hint", "kdx.knowledge.hint:__all__", "kdx.knowledge.hint:"])
def test_a_target_that_is_no_class_is_raised_when_used(package, target: str) -> None:
    plugins = Plugins(entries=[package("late", GOOD.replace("kdx.knowledge.hint:Hint", target))])
    message = f"'good-loss' of plugin 'late'.*'{target}', which is .*, not a class or function; write it as 'package"
    with pytest.raises(PluginError, match=message):
        plugins.make("knowledge", "good-loss")


@pytest.mark.parametrize(
    ("kind", "target", "base"),
    [
        ("knowledge", "kdx.knowledge.hint:hint", "Knowledge"),
        ("scheme", "kdx.knowledge.hint:Hint", "Scheme"),
        ("assistant", "kdx.registry:Plugins", "Assistant"),
    ],
)
def test_a_component_of_another_kind_is_raised_when_used(package, kind: Kind, target: str, base: str) -> None:
    hook = {"knowledge": "kdx_knowledge", "scheme": "kdx_schemes", "assistant": "kdx_assistants"}[kind]
    code = GOOD.replace("kdx.knowledge.hint:Hint", target).replace("kdx_knowledge", hook)
    plugins = Plugins(entries=[package("late", code)])
    message = f"{kind} 'good-loss' of plugin 'late'.*'{target}', which is .*, not a subclass of kdx.{base}"
    with pytest.raises(PluginError, match=message):
        plugins.load(kind, "good-loss")


def test_packages_can_be_blocked_by_argument_and_by_environment(package, monkeypatch) -> None:
    entries = [package("good", GOOD)]
    assert "good-loss" not in Plugins(entries=entries, blocked=["good"]).components("knowledge")
    monkeypatch.setenv("KDX_PLUGINS_DISABLED", "other, good")
    plugins = Plugins(entries=entries)
    assert "good-loss" not in plugins.components("knowledge")
    assert next(info.status for info in plugins.infos if info.name == "good") == "blocked"


def test_tracing_prints_hook_calls(package, monkeypatch, capsys) -> None:
    monkeypatch.setenv("KDX_PLUGINS_TRACE", "1")
    plugins = Plugins(entries=[package("good", GOOD)])
    plugins.manager.hook.kdx_knowledge()
    assert "kdx_knowledge" in capsys.readouterr().err


def test_unknown_names_and_kinds_give_the_nearest() -> None:
    plugins = Plugins(entries=())
    with pytest.raises(UnknownNameError, match="no knowledge named 'soft-target'; did you mean 'soft-targets'"):
        plugins.make("knowledge", "soft-target")
    with pytest.raises(UnknownNameError, match="no kind of component 'schemes'; did you mean 'scheme'"):
        plugins.components("schemes")
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'temprature'; did you mean 'temperature'"):
        kdx.make("knowledge", "soft-targets", temprature=2.0)


def test_a_plugin_can_be_registered_in_the_process() -> None:
    class Mine:
        @hookimpl
        def kdx_knowledge(self):
            return [Spec("mine", "kdx.knowledge.hint:Hint", "mine")]

    plugins = Plugins(entries=())
    plugins.components("knowledge")
    plugins.register(Mine(), "mine")
    assert "mine" in plugins.components("knowledge")
    with pytest.raises(PluginError, match="already registered"):
        plugins.register(Mine(), "mine")


class Distribution:
    """The part of a package that an entry point knows."""

    version = "1.0"

    def __init__(self, name: str, *requires: str) -> None:
        self.name, self.requires = name, list(requires)


def of(entry: EntryPoint, *requires: str) -> EntryPoint:
    vars(entry).update(dist=Distribution(f"dist-{entry.name}", *requires))
    return entry


@pytest.mark.parametrize(
    ("requires", "needs"),
    [("kdx>=9", "kdx>=9"), ("kdx<0.0.1", "kdx<0.0.1"), ("kdx>=0.1", None), ("kdx", None), ("kdx-other>=9", None)],
)
def test_a_plugin_for_another_version_of_kdx_is_left_out_and_says_so(package, requires: str, needs: str | None) -> None:
    entry = of(package("old", GOOD), "numpy", requires, "pytest; extra == 'test'")
    plugins = quiet(entry)
    info = next(info for info in plugins.infos if info.name == "old")
    assert (info.status == "broken") == (needs is not None)
    if needs is not None:
        with pytest.warns(PluginWarning, match=f"dist-old 1.0.*it needs {needs}, this is kdx 0.1.0; update one of the"):
            Plugins(entries=[entry])


def test_a_hook_of_another_version_is_said_to_be_one(package) -> None:
    code = "from kdx import hookimpl\n@hookimpl\ndef kdx_step_end(run, loss_by_rank):\n    pass"
    with pytest.warns(PluginWarning, match="'loss_by_rank'.*built for another version of kdx than 0.1.0"):
        Plugins(entries=[package("newer", code)])
    code = "from kdx import hookimpl\n@hookimpl\ndef kdx_quantisers():\n    return []"
    with pytest.warns(PluginWarning, match="unknown hook 'kdx_quantisers'.*built for another version of kdx"):
        Plugins(entries=[package("newest", code)])


def test_a_cyclic_import_is_explained(package) -> None:
    package("cycle-loss", "from kdx_test_cycle import NAME\nclass Loss: pass")
    code = "from kdx_test_cycle_loss import Loss\nfrom kdx import hookimpl\nNAME = 'cycle'"
    with pytest.warns(PluginWarning, match="circular import.*import each other: the module of hooks names components"):
        Plugins(entries=[package("cycle", code)])


def test_two_packages_with_one_plugin_name_are_both_named(package) -> None:
    entries = [of(package("same", GOOD)), of(EntryPoint("same", "textwrap", "kdx"))]
    vars(entries[1]).update(dist=Distribution("dist-other"))
    message = r"'same' of dist-other 1.0 \(textwrap\).*already registered, by dist-same 1.0 \(kdx_test_same\).*rename"
    with pytest.warns(PluginWarning, match=message):
        Plugins(entries=entries)


def test_the_time_of_a_slow_import_and_what_it_pulled_in_are_known(package, monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "docstring_parser", raising=False)
    monkeypatch.setattr("kdx.registry._HEAVY", ("docstring_parser", "pluggy"))
    code = "import time, docstring_parser\ntime.sleep(0.21)\n" + textwrap.dedent(GOOD)
    plugins = Plugins(entries=[package("slow", code), package("good", GOOD.replace("good-loss", "other-loss"))])
    slow, good = (next(info for info in plugins.infos if info.name == name) for name in ("slow", "good"))
    assert slow.seconds > SLOW > good.seconds
    assert (slow.heavy, good.heavy) == (("docstring_parser",), ())
