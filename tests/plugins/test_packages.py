"""The packages under plugins/: installed as anyone's, seen by the registry, and their own tests run."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdx.experiment import recipe_files
from kdx.registry import _HOOK, ELSEWHERE

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.name for path in (ROOT / "plugins").glob("kdx-*"))


def test_names_of_packages_that_are_not_installed_are_those_that_they_provide() -> None:
    provided: dict[str, dict[str, tuple[str, ...]]] = {}
    recipes: dict[str, str] = {}
    for package in PACKAGES:
        [file] = (ROOT / "plugins" / package).glob("*/plugin.py")
        spec = importlib.util.spec_from_file_location(f"plugin_of_{file.parent.name}", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        hooks = {kind: getattr(module, hook, None) for kind, hook in _HOOK.items()}
        found = {kind: tuple(sorted(spec.name for spec in hook())) for kind, hook in hooks.items() if hook}
        for path in getattr(module, "kdx_recipes", list)():
            recipes[path.stem] = package
        provided[package] = {kind: names for kind, names in found.items() if kind != "op"}
    assert provided == ELSEWHERE
    assert recipes == recipe_files.ELSEWHERE


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_installs_and_passes_its_own_tests(package: str, tmp_path: Path) -> None:
    site, copied = tmp_path / "site", tmp_path / package  # a build leaves files beside its sources
    shutil.copytree(ROOT / "plugins" / package, copied, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    run = [sys.executable, "-m"]
    subprocess.run([*run, "pip", "install", "--quiet", *offline, "--target", site, copied], check=True)
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    listed = subprocess.run([*run, "kdx", "plugins", "--json"], check=True, capture_output=True, env=environment)
    loaded = {row["distribution"]: row["status"] for row in json.loads(listed.stdout)}
    assert loaded.get(package) == "loaded"
    result = subprocess.run(
        [*run, "pytest", "-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, copied],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
