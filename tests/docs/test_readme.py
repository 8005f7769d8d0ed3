"""The examples of the README and of docstrings run."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kdx

ROOT = Path(__file__).parents[2]
NATIVE = ("triton", "cuda")  # modules that need their compiler to be imported


def modules() -> list[str]:
    found = [info.name for info in pkgutil.walk_packages(kdx.__path__, "kdx.")]
    return [name for name in found if name != "kdx.__main__" and name.rpartition(".")[2] not in NATIVE]


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


@pytest.mark.parametrize("name", modules())
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_docstring_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


@pytest.mark.parametrize("number", range(len(blocks("README.md", "python"))))
def test_readme_python_blocks_run(number: int, tmp_path: Path) -> None:
    code = blocks("README.md", "python")[number]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)


def test_readme_commands_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", readme, re.MULTILINE)) <= targets
    commands = set(re.findall(r"^kdx ([\w-]+)", "\n".join(blocks("README.md", "sh")), re.MULTILINE))
    assert commands
    for command in commands:
        subprocess.run([sys.executable, "-m", "kdx", command, "--help"], check=True, capture_output=True, cwd=ROOT)


def test_every_environment_variable_of_the_code_is_in_the_readme() -> None:
    sources = [*(ROOT / "kdx").rglob("*.py"), *(ROOT / "csrc").rglob("*.*"), ROOT / "setup.py"]
    used = {name for path in sources for name in re.findall(r"[\"'](KDX_[A-Z_]+)[\"']", path.read_text())}
    readme = (ROOT / "README.md").read_text()
    assert used
    assert {name for name in used if name not in readme} == set()
