"""The command line: what it prints, with which status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdx.cli.app import app
from kdx.errors import KdxError
from kdx.files import write_json

ROOT = Path(__file__).parents[2]
runner = CliRunner(env={"COLUMNS": "200"})


def ok(*arguments: str) -> str:
    result = runner.invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_help_has_examples_everywhere() -> None:
    assert "kdx run fashion-offline" in ok("--help")
    for command in ("run", "plugins", "list", "show", "inspect", "student", "env"):
        assert "xample" in ok(command, "--help")
    assert ok("--version").startswith("kdx 0.")


def test_list_shows_every_kind_and_one_kind() -> None:
    everything = json.loads(ok("list", "--json"))
    assert {row["kind"] for row in everything} >= {"knowledge", "scheme", "model", "dataset"}
    knowledge = ok("list", "knowledge")
    assert "soft-targets" in knowledge
    assert "Hinton et al. 2015" in knowledge
    assert "offline" not in {line.split()[1] for line in knowledge.splitlines()}
    with pytest.raises(KdxError, match="no kind of component 'knowlege'; did you mean 'knowledge'"):
        runner.invoke(app, ["list", "knowlege"], catch_exceptions=False)


def test_show_prints_options_with_types_defaults_and_docs() -> None:
    shown = ok("show", "soft-targets")
    assert "temperature: float, default 4.0" in shown
    assert "T > 0" in shown
    assert "arXiv:1503.02531" in shown
    options = {row["name"]: row for row in json.loads(ok("show", "soft-targets", "--json"))[0]["options"]}
    assert options["temperature"] == {
        "name": "temperature",
        "type": "float",
        "required": False,
        "default": 4.0,
        "doc": "T > 0. Small students want a low one.",
    }
    with pytest.raises(KdxError, match="no component named 'soft-target'"):
        runner.invoke(app, ["show", "soft-target"], catch_exceptions=False)


def test_every_component_shows_documented_options() -> None:
    for name in {row["name"] for row in json.loads(ok("list", "--json"))}:
        for shown in json.loads(ok("show", name, "--json")):
            undocumented = [option["name"] for option in shown["options"] if not option["doc"]]
            assert not undocumented, (shown["kind"], name, undocumented)


def test_plugins_are_listed_with_what_they_provide() -> None:
    rows = json.loads(ok("plugins", "--json"))
    builtin = next(row for row in rows if row["name"] == "kdx-builtin")
    assert builtin["status"] == "loaded"
    assert "knowledge soft-targets" in builtin["components"]
    assert "kdx-builtin" in ok("plugins")


def test_env_gives_a_reason_for_every_backend_that_is_not_usable() -> None:
    report = json.loads(ok("env", "--json"))
    assert report["backends"].keys() == {"reference", "cpu", "triton", "cuda"}
    assert report["backends"]["reference"] is None
    text = ok("env")
    for name, reason in report["backends"].items():
        assert f"{name:12} " + ("usable" if reason is None else f"not usable: {reason}") in text


def test_inspect_lists_layers_proposes_pairs_and_draws(tmp_path: Path) -> None:
    figure = tmp_path / "cka.png"
    arguments = ["inspect", "convnet:width=4", "convnet:width=2,stages=2", "--samples", "64", "--figure", str(figure)]
    report = json.loads(ok(*arguments, "--json"))
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert [layer["name"] for layer in report["student"]][-1] == "fc"
    assert report["pairs"]["relative"][-1] == ["fc", "fc"]
    assert report["costs"]["student"]["bits"] == 32
    assert report["costs"]["teacher"]["parameters"] > report["costs"]["student"]["parameters"]
    text = ok(*arguments)
    assert "by CKA" in text
    header, teacher, student, shares = text.splitlines()[:4]
    assert header.split()[:5] == ["parameters", "FLOPs", "size", "bits", "zeros"]
    assert [line.split()[0] for line in (teacher, student)] == ["teacher", "student"]
    assert shares.lstrip()[0].isdigit()
    assert "stage4" in text
    assert "random" in text  # no weights were given
    assert "stage1.conv1" not in ok(*arguments, "--max-layers", "8")
    with pytest.raises(KdxError, match="model convnet: unknown option 'witdh'; did you mean 'width'"):
        runner.invoke(app, ["inspect", "convnet:witdh=4", "convnet"], catch_exceptions=False)
    with pytest.raises(KdxError, match="NAME:key=value,key=value; got '4'"):
        runner.invoke(app, ["inspect", "convnet:4", "convnet"], catch_exceptions=False)


def test_inspect_shows_what_the_models_of_a_run_cost_finished_or_not(tmp_path: Path) -> None:
    cost = {"parameters": 100, "flops": 2000, "bytes": 4096, "bits": 32.0, "sparsity": 0.5, "uncounted": {}}
    time = {"latency_ms": 1.5, "latency_spread_ms": 0.25}
    artifact = {"test": {}, "validation": {}, "bytes": 1024, "bits": 8.5, **time, "files": {"a.onnx": "0"}}
    stage = {"validation": {}, "test": {}, "weights": "w", "files": {}, **cost, **time}
    for name, artifacts in (("teacher", {}), ("distilled", {"onnx-int8": artifact})):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "result.json", {**stage, "artifacts": artifacts})
    text = ok("inspect", str(tmp_path))
    assert [line.split("  ")[0] for line in text.splitlines()[1:3]] == ["teacher", "distilled"]
    assert "distilled as onnx-int8" in text
    assert "1.0 KiB" in text
    assert "8.5" in text
    assert "50.0%" in text
    stages = {"distilled": {**stage, "artifacts": {"onnx-int8": artifact}}}
    write_json(tmp_path / "summary.json", {"stages": stages, "files": {}})
    found = json.loads(ok("inspect", str(tmp_path), "--json"))
    assert list(found) == ["distilled", "distilled as onnx-int8"]
    assert found["distilled as onnx-int8"]["files"] == {"a.onnx": "0"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(KdxError, match="holds no run with a finished stage"):
        runner.invoke(app, ["inspect", str(tmp_path / "empty")], catch_exceptions=False)
    alone = runner.invoke(app, ["inspect", "convnet"])
    assert alone.exit_code == 2
    assert "give two models to compare" in alone.output


def test_recipes_are_listed_and_resolved_without_running() -> None:
    assert "fashion-offline" in ok("run", "--list")
    resolved = ok("run", "fashion-offline", "train.epochs=3", "--dry-run")
    assert "epochs: 3" in resolved
    assert "nesterov: true" in resolved
    assistant = "assistant={name: hint-then-distil, student_layer: stage1, teacher_layer: stage1}"
    stages = ok("run", "fashion-offline", assistant, "--dry-run").partition("# stages:")[2]
    assert "#   hint, taught by teacher\n" in stages
    assert "#   distilled, taught by teacher, begins with student: hint\n" in stages


def test_errors_are_one_message_and_a_status_not_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kdx", "run", "fashion-ofline"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("kdx: there is no recipe 'fashion-ofline'; did you mean 'fashion-offline'")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_one_message_too(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    command = [sys.executable, "-m", "kdx", "new-plugin", "kdx-mine", "--folder", str(tmp_path / "taken")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "taken") in done.stderr


def test_timings_name_a_slow_plugin_first_and_say_what_makes_it_slow(monkeypatch) -> None:
    from kdx.registry import PluginInfo, Plugins

    plugins = Plugins(entries=(), blocked=(), trace=False)
    plugins.infos.append(PluginInfo("quick", "kdx-quick", "1.0", "quick.plugin", seconds=0.01))
    plugins.infos.append(PluginInfo("slow", "kdx-slow", "1.0", "slow.plugin", seconds=1.5, heavy=("torch",)))
    monkeypatch.setattr("kdx.registry.default_plugins", lambda: plugins)
    lines = ok("plugins", "--timings").splitlines()
    assert lines[0].startswith("slow  kdx-slow 1.0")
    assert "slow: every kdx command waits for it; it imports torch" in lines[2]
    assert sum("slow: every kdx command" in line for line in lines) == 1
    assert "slow: every" not in ok("plugins")


def test_env_shows_the_kernels_of_plugins(monkeypatch) -> None:
    import kdx

    problem = "backend 'rkd/gone' of plugin 'p' points at nothing"
    monkeypatch.setitem(vars(kdx.ops), "plugin_backends", lambda: {"softmax_kl/mine": None, "rkd/gone": problem})
    text = ok("env")
    assert "softmax_kl/mine usable" in text
    assert f"rkd/gone     not usable: {problem}" in text


PLUGIN = """
from kdx import Spec, hookimpl

@hookimpl
def kdx_assistants():
    return [Spec("plain-plan", "kdx_test_cli:Plan", "no options")]

@hookimpl
def kdx_models():
    return [Spec("with-act", "kdx_test_cli:with_act", "a model"), Spec("of-foo", "kdx_test_cli:of_foo", "another")]

@hookimpl
def kdx_ops():
    return [Spec("softmax_kl/mine", "kdx_test_cli_backend", "a backend")]
"""
PARTS = """
from __future__ import annotations
import torch
from kdx import Assistant

class Plan(Assistant):
    '''A plan without options.'''

def with_act(act: type = torch.nn.ReLU, loss: object = torch.nn.functional.relu):
    '''A model with functions as defaults.'''

def of_foo(width: Foo = 3):
    '''A model.'''
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch) -> None:
    """Installs the plugin above."""
    from importlib.metadata import EntryPoint

    from kdx.registry import Plugins

    files = {"kdx_test_cli_hooks": PLUGIN, "kdx_test_cli": PARTS, "kdx_test_cli_backend": "'The module of a backend.'"}
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins = Plugins(entries=[EntryPoint("cli-test", "kdx_test_cli_hooks", "kdx")], blocked=(), trace=False)
    monkeypatch.setattr("kdx.registry.default_plugins", lambda: plugins)


@pytest.mark.usefixtures("plugin")
def test_show_knows_components_without_options_and_backends() -> None:
    assert ok("show", "plain-plan").endswith("options: none\n")
    shown = ok("show", "softmax_kl/mine")
    assert "op softmax_kl/mine  (cli-test, kdx_test_cli_backend)\n\nThe module of a backend." in shown
    assert shown.endswith("options: none\n")
    assert json.loads(ok("show", "softmax_kl/mine", "--json"))[0]["options"] == []


@pytest.mark.usefixtures("plugin")
def test_show_names_functions_that_are_defaults() -> None:
    assert "act: type, default ReLU\n" in ok("show", "with-act")
    assert "loss: object, default relu\n" in ok("show", "with-act")
    options = json.loads(ok("show", "with-act", "--json"))[0]["options"]
    assert [option["default"] for option in options] == ["ReLU", "relu"]


@pytest.mark.usefixtures("plugin")
def test_an_annotation_that_cannot_be_read_is_named() -> None:
    message = "of_foo of kdx_test_cli: its annotations cannot be read: NameError: name 'Foo' is not defined; import"
    with pytest.raises(KdxError, match=message):
        runner.invoke(app, ["show", "of-foo"], catch_exceptions=False)


def test_a_plugin_that_is_left_out_is_one_line_before_the_output(tmp_path: Path) -> None:
    info = tmp_path / "kdx_torn-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kdx-torn\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kdx]\ntorn = kdx_torn\n")
    (tmp_path / "kdx_torn.py").write_text("import no_such_module_at_all")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    command = [sys.executable, "-m", "kdx", "list", "op"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    expected = (
        "kdx: warning: plugin 'torn' of kdx-torn 1.0 (kdx_torn) was left out: ModuleNotFoundError: No module named "
        "'no_such_module_at_all'\n"
    )
    assert done.stderr == expected
    assert "softmax_kl" in done.stdout
