"""``kdx new-plugin``: every kind passes its own tests at once; nothing is overwritten; names are explained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdx.cli.app import app
from kdx.cli.new_plugin import new_plugin
from kdx.errors import KdxError

ROOT = Path(__file__).parents[2]
KINDS = ("knowledge", "scheme", "assistant", "model", "dataset", "task", "student", "op")


def install(package: Path) -> None:
    """The metadata that an installer writes for the package, so that its entry point is found; no network, no pip."""
    info = package / f"{package.name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.name}\nVersion: 0.1.0\n")
    text = (package / "pyproject.toml").read_text()
    entry = text.split("[project.entry-points.kdx]\n")[1].split("\n")[0]
    (info / "entry_points.txt").write_text(f"[kdx]\n{entry}\n".replace('"', ""))


@pytest.mark.slow
def test_every_kind_passes_its_own_tests_at_once(tmp_path: Path) -> None:
    packages = [new_plugin(f"kdx-try-{kind}", kind, tmp_path) for kind in KINDS]
    for package in packages:
        install(package)
    path = os.pathsep.join([*map(str, packages), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", "-W", "error"]
    command += ["-W", "ignore:.*should not be instantiated:DeprecationWarning"]  # by torch's own tracer
    command += [str(package / "tests") for package in packages]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
    listing = [sys.executable, "-m", "kdx", "list", "op"]
    listed = subprocess.run(listing, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment).stdout
    assert "try_op/fused" in listed


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_tidy(kind: str, tmp_path: Path) -> None:
    package = new_plugin("kdx-tidy", kind, tmp_path)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length", "120", "--select", "E,F,W,B,UP"]
    done = subprocess.run([*command, str(package)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert not list(tmp_path.glob(".new-plugin-*"))
    assert "{" + "{" not in "".join(path.read_text() for path in package.rglob("*.*") if path.is_file())


def test_an_existing_folder_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "kdx-mine").mkdir()
    (tmp_path / "kdx-mine" / "notes").write_text("kept")
    with pytest.raises(KdxError, match="kdx-mine exists already and is left as it is"):
        new_plugin("kdx-mine", "knowledge", tmp_path)
    assert [path.name for path in (tmp_path / "kdx-mine").iterdir()] == ["notes"]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("MyLoss", "knowledge", "'MyLoss' is no name for a plugin: expected kebab-case.*'my-loss' would do"),
        ("my_loss", "knowledge", "'my-loss' would do"),
        ("2fast", "knowledge", "beginning with a letter"),
        ("../evil", "knowledge", "'evil' would do"),
        ("", "knowledge", "is no name for a plugin"),
        ("json", "knowledge", "would make a module 'json', which Python, kdx or an installed package has already"),
        ("torch", "knowledge", "would make a module 'torch', which Python, kdx or an installed package has already"),
        ("kdx", "knowledge", "would make a module 'kdx'"),
        ("kdx-2nd", "op", "would make an op named '2nd'"),
        ("kdx-soft-targets", "knowledge", "kdx has a knowledge named 'soft-targets' already"),
        ("kdx-softmax-kl", "op", "kdx has an op named 'softmax_kl' already"),
        ("mine", "knowlege", "no kind of plugin 'knowlege'; did you mean 'knowledge'"),
    ],
)
def test_a_name_that_cannot_be_one_is_explained(name: str, kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(KdxError, match=message):
        new_plugin(name, kind, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_to_do_next(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["new-plugin", "kdx-mine", "--folder", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "pip install -e '.[test]' && pytest" in done.output
    assert (tmp_path / "kdx-mine" / "kdx_mine" / "knowledge.py").exists()
