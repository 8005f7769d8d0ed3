"""Commands of plugins beside those of kdx."""

from __future__ import annotations

import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import kdx
from kdx.cli.app import app
from kdx.errors import PluginError, PluginWarning, UnknownNameError
from kdx.hookspecs import hookimpl
from kdx.testing import CheckFailed, check_plugin

runner = CliRunner(env={"COLUMNS": "200"})
ROOT = Path(__file__).parents[2]

mine = typer.Typer(add_completion=False)


@mine.command()
def greet(name: str, times: int = 1) -> None:
    """Greet somebody."""
    if name == "nobody":
        raise kdx.KdxError("nobody is there")
    typer.echo(" ".join(["hello", name] * times))


group = typer.Typer(add_completion=False)
group.command("greet")(greet)


@group.command()
def leave() -> None:
    """Say goodbye."""
    typer.echo("goodbye")


NO_COMMAND = 3


def plugin(**targets: str) -> object:
    class Plugin:
        @hookimpl
        def kdx_commands(self):
            return [
                kdx.Spec(name, f"{__name__}:{target}", f"the {name} of a plugin") for name, target in targets.items()
            ]

    return Plugin()


def test_an_app_a_group_and_a_function_become_commands(plugged) -> None:
    plugged(plugin(hello="mine", talk="group", greet="greet"), "talks")
    assert runner.invoke(app, ["hello", "Ada", "--times", "2"]).output == "hello Ada hello Ada\n"
    assert runner.invoke(app, ["greet", "Ada"]).output == "hello Ada\n"
    assert runner.invoke(app, ["talk", "leave"]).output == "goodbye\n"
    assert "Greet somebody" in runner.invoke(app, ["talk", "--help"]).output
    shown = runner.invoke(app, ["hello", "--help"]).output
    assert "Usage: kdx hello" in shown
    assert "--times" in shown
    wrong = runner.invoke(app, ["hello", "Ada", "--tims", "2"])
    assert wrong.exit_code == 2
    with pytest.raises(kdx.KdxError, match="nobody is there"):
        runner.invoke(app, ["hello", "nobody"], catch_exceptions=False)


def test_help_lists_them_with_their_summary_and_imports_nothing(plugged) -> None:
    plugged(plugin(hello="mine", broken="no_such_thing"), "talks")
    text = runner.invoke(app, ["--help"]).output
    assert "the hello of a plugin" in text
    assert "the broken of a plugin" in text
    assert "kdx hello --help" in runner.invoke(app, ["show", "hello"]).output
    assert "command hello" in runner.invoke(app, ["plugins", "--json"]).output


def test_a_fault_names_the_plugin(plugged) -> None:
    plugged(plugin(broken="no_such_thing", three="NO_COMMAND"), "talks")
    with pytest.raises(PluginError, match=r"command 'broken' of plugin 'talks' .* does not import: AttributeError"):
        runner.invoke(app, ["broken"], catch_exceptions=False)
    with pytest.raises(PluginError, match=r"command 'three' of plugin 'talks' .* is 3, not a class or function"):
        runner.invoke(app, ["three"], catch_exceptions=False)


class Callable:
    """Neither an app nor a function."""

    def __call__(self) -> None:
        pass


def test_what_typer_cannot_read_is_named(plugged) -> None:
    plugged(plugin(calls="Callable"), "calls")
    with pytest.raises(PluginError, match=r"command 'calls' of plugin 'calls' .*expected a typer.Typer or a function"):
        runner.invoke(app, ["calls"], catch_exceptions=False)


def test_a_command_of_kdx_keeps_its_name(plugged) -> None:
    plugged(plugin(env="mine"), "talks")
    with pytest.warns(PluginWarning, match="plugin 'talks' has a command 'env', as kdx has; that of kdx runs"):
        text = runner.invoke(app, ["--help"]).output
    assert "the env of a plugin" not in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "torch" in runner.invoke(app, ["env"]).output


def test_two_plugins_with_one_command_are_both_named(plugged) -> None:
    plugged(plugin(hello="mine"), "one")
    plugged(plugin(hello="greet"), "two")
    with pytest.raises(PluginError, match=r"provided by plugin 'one' .* and plugin 'two'"):
        runner.invoke(app, ["hello", "Ada"], catch_exceptions=False)


def test_a_command_of_a_package_that_is_not_installed_names_the_package(monkeypatch) -> None:
    from kdx import registry

    monkeypatch.setattr(registry, "ELSEWHERE", {"kdx-talk": {"command": ("talk",)}})
    with pytest.raises(UnknownNameError, match="no command 'talk' yet: it is provided by kdx-talk; pip install"):
        runner.invoke(app, ["talk"], catch_exceptions=False)
    unknown = runner.invoke(app, ["tlak"])
    assert unknown.exit_code == 2
    assert "No such command 'tlak'" in unknown.output


def test_help_with_a_plugin_imports_neither_torch_nor_the_plugins_command(tmp_path) -> None:
    (tmp_path / "talks.py").write_text(
        "from kdx import Spec, hookimpl\n\n\n@hookimpl\ndef kdx_commands():\n"
        "    return [Spec('talk', 'talks_cli:app', 'talk to somebody')]\n"
    )
    (tmp_path / "talks_cli.py").write_text("raise RuntimeError('imported')\n")
    info = tmp_path / "talks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: talks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kdx]\ntalks = talks\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['kdx', '--help']\n"
        "from kdx.cli.app import app\n"
        "try: app()\nexcept SystemExit: pass\nprint([m for m in ('torch', 'numpy', 'talks_cli') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "talk to somebody" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_kit_refuses_a_command_that_kdx_has_or_that_is_none() -> None:
    def module(**targets: str) -> types.ModuleType:
        made = types.ModuleType("made")
        made.kdx_commands = hookimpl(
            lambda: [kdx.Spec(name, f"{__name__}:{target}", "for a test") for name, target in targets.items()]
        )
        return made

    failures = {"imports_no_torch": "it is made in this test"}
    check_plugin(module(hello="mine", say="greet"), expected_failures=failures)
    with pytest.raises(CheckFailed, match="command 'run': kdx has a command of this name"):
        check_plugin(module(run="mine"), expected_failures=failures)
    with pytest.raises(CheckFailed, match=r"expected a typer.Typer or a function"):
        check_plugin(module(hello="Callable"), expected_failures=failures)
