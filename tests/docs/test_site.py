"""The documentation: it builds without a warning, its code runs, and it names everything with its exact signature."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import typer

import kdx
from kdx import hookspecs
from kdx.cli.app import app
from kdx.experiment.components import SUPPLIED
from kdx.experiment.recipe import Recipe
from kdx.experiment.recipe_files import check_recipe
from kdx.options import options_of
from kdx.registry import KINDS, default_plugins
from tools.docs_pages import leaves, packages, pages

ROOT = Path(__file__).parents[2]
WRITTEN = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return pages()


TUTORIAL = "plugins/tutorial.md"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in WRITTEN if blocks(page, "python")])
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = "\n".join(blocks(page, "python"))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)


def test_every_component_stands_on_its_page_with_its_options(generated: dict[str, str]) -> None:
    plugins = default_plugins()
    for kind in KINDS:
        for name, found in plugins.components(kind).items():
            if found[0].plugin != "kdx-builtin" or kind == "op":  # ops have pages of their own, with the mathematics
                continue
            section = generated[f"components/{kind}.md"].split(f"### {name}\n")[1].split("\n### ")[0]
            assert (found[0].spec.paper or "") in section, name
            target = plugins.load(kind, name)
            for option in {option.name for option in options_of(target)} - SUPPLIED.get(kind, frozenset()):
                assert f"| `{option}` |" in section, f"{name}: {option}"


def test_every_hook_stands_there_with_its_exact_signature(generated: dict[str, str]) -> None:
    source = inspect.getsource(hookspecs)
    found = re.findall(r"^def (kdx_\w+\(.*?\) -> [^:]+):", source, re.MULTILINE)
    assert len(found) >= 9
    for signature in found:
        assert f"```python\n{signature}\n```" in generated["reference/hooks.md"]


def test_every_command_and_option_stands_there(generated: dict[str, str]) -> None:
    page = generated["reference/cli.md"]
    commands = dict(leaves(typer.main.get_command(app), "kdx"))
    assert "kdx run" in commands
    for path, command in commands.items():
        section = page.split(f"## {path}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            for flag in parameter.opts if parameter.param_type_name == "option" else ():
                assert f"`{flag}`" in section, f"{path}: {flag}"


def test_every_key_of_a_recipe_stands_there(generated: dict[str, str]) -> None:
    def keys(values: dict[str, object], path: str = "") -> set[str]:
        found = set()
        for key, value in values.items():
            found.add(f"{path}{key}")
            if isinstance(value, dict) and "name" not in value and key != "knowledge":
                found |= keys(value, f"{path}{key}.")
        return found

    recipe: Recipe = check_recipe(
        {
            "data": {"dataset": {"name": "digits"}, "augment": {}},
            "teacher": {"model": {"name": "mlp"}},
            "student": {"model": {"name": "mlp"}},
        }
    )
    written = keys(recipe.dump())
    assert "data.augment.shift" in written
    for key in written:
        assert f"| `{key}` |" in generated["reference/recipe.md"], key


def test_every_op_stands_there_with_its_arguments(generated: dict[str, str]) -> None:
    kernels = "".join(text for page, text in generated.items() if page.startswith("kernels/"))
    assert {"softmax_kl", "kd_loss", "rkd_distance", "rkd_angle", "rkd"} <= kdx.ops.OPS.keys()
    for name in kdx.ops.OPS:
        section = kernels.split(f"### kdx.ops.{name}\n")[1].split("\n### ")[0]
        for parameter in inspect.signature(getattr(kdx.ops, name)).parameters.values():
            assert f"| `{parameter.name}` |" in section
            assert parameter.kind is not parameter.KEYWORD_ONLY or f"{parameter.name}: " in section


def test_every_public_name_stands_on_the_page_of_its_package(generated: dict[str, str]) -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for package in ("kdx", *packages("kdx")):
        page = "reference/api.md" if package == "kdx" else f"reference/api/{package.removeprefix('kdx.')}.md"
        assert page in navigation
        module = importlib.import_module(package)
        for name in module.__all__:
            if inspect.ismodule(getattr(module, name)):
                inner = f"{package}.{name}".removeprefix("kdx.")
                assert f"(api/{inner}.md)" in generated["reference/api.md"]
            elif name != "__version__":
                assert re.search(rf"^(:::|###) {re.escape(f'{package}.{name}')}$", generated[page], re.MULTILINE), name


def test_every_environment_variable_stands_there(generated: dict[str, str]) -> None:
    sources = [*(ROOT / "kdx").rglob("*.py"), ROOT / "setup.py"]
    used = {name for path in sources for name in re.findall(r"[\"'](KDX_[A-Z_]+)[\"']", path.read_text())}
    assert "KDX_BUILD" in used
    assert {name for name in used if f"`{name}`" not in generated["reference/environment.md"]} == set()


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    page = (tmp_path / "site" / "components" / "knowledge" / "index.html").read_text()
    assert "soft-targets" in page
    page = (tmp_path / "site" / "reference" / "api" / "knowledge" / "index.html").read_text()
    for method in ("Knowledge.setup", "Knowledge.forward", "PairedLayers.compare"):
        assert f'id="kdx.knowledge.{method}"' in page


@pytest.mark.slow
def test_the_tutorial_works_as_it_is_written(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    outer = [path for path in sys.path if path.endswith("site-packages")]
    # this environment's packages, kdx among them, are seen from the new one, where the plugin is installed
    (site / "outer.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in outer))
    for command, module in {"kdx": "kdx.cli.app", "pytest": "pytest", "pip": "pip._internal.cli.main"}.items():
        file = tmp_path / "venv" / "bin" / command
        file.write_text(f"#!{tmp_path}/venv/bin/python\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
        file.chmod(0o755)
    script = ["set -ex"]
    fences = re.findall(r'```(\w+)(?: title="([^"]+)")?\n(.*?)```', (ROOT / "docs" / TUTORIAL).read_text(), re.DOTALL)
    for language, title, text in fences:
        if title:
            script.append(f"cat > {title} <<'END_OF_FILE'\n{text}END_OF_FILE")
        elif language == "sh":
            script.append(text)
    path = f"{tmp_path / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_CONFIG_FILE": os.devnull}
    result = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env={**os.environ, **offline, "PATH": path, "PYTHONPATH": str(ROOT), "VIRTUAL_ENV": str(tmp_path / "venv")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    summary = json.loads((tmp_path / "kdx-jeffreys" / "runs" / "jeffreys" / "summary.json").read_text())
    assert summary["gain"] > 3, "the tutorial's loss does its student no good"


@pytest.mark.slow
def test_the_recipe_of_getting_started_does_its_student_good(tmp_path: Path) -> None:
    (text,) = blocks("getting-started.md", "yaml")
    (tmp_path / "mine.yaml").write_text(text)
    assert kdx.run(tmp_path / "mine.yaml", folder=tmp_path / "run", threads=1)["gain"] > 1
