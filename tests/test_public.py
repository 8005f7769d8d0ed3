"""Public names: each package has them lazily, and plugins, templates, documents and benchmarks use nothing else."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import kdx

ROOT = Path(__file__).parents[1]


def lazy_packages() -> list[str]:
    """Packages of kdx that load their public names on first use."""
    files = sorted((ROOT / "kdx").rglob("__init__.py"))
    names = [".".join(path.parent.relative_to(ROOT).parts) for path in files if "exports(" in path.read_text()]
    assert {"kdx", "kdx.knowledge", "kdx.knowledge.functional", "kdx.teachers", "kdx.training"} <= set(names)
    return names


def declared(package: str) -> set[tuple[str, str]]:
    """(module, name) that a package imports for type checkers under its own public names."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        (node.module or "", alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


@pytest.mark.parametrize("package", lazy_packages())
def test_a_package_gives_type_checkers_the_names_that_it_loads(package: str) -> None:
    module = importlib.import_module(package)
    names = declared(package)
    own = {name for name in module.__all__ if name in ("__version__", "make", "plugins")}
    assert sorted({name for _, name in names} | own) == module.__all__ == dir(module)
    for home, name in names:
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            assert value.__name__ == f"{home}.{name}"
        else:
            assert value is getattr(importlib.import_module(home), name)
            assert not is_module(f"{package}.{name}"), "a module of the same name would take the place of the object"


@pytest.mark.parametrize("package", lazy_packages())
def test_a_package_has_no_other_names(package: str) -> None:
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'Nothing'"):
        importlib.import_module(package).Nothing  # noqa: B018  # the access is the test


def test_importing_the_packages_imports_neither_torch_nor_their_modules() -> None:
    names = lazy_packages()
    code = f"import sys\nimport {', '.join(names)}\nprint(*sorted(n for n in sys.modules if n[:4] in ('kdx.', 'torc')))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(result.stdout.split()) == {*names, "kdx.lazy"} - {"kdx"}


def test_the_classes_are_reached_from_kdx() -> None:
    code = "import kdx\nprint(kdx.knowledge.DKD, kdx.schemes.Offline, kdx.assistants.TAKD, kdx.teachers.EMA, kdx.Taps)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.count("<class 'kdx.") == 5


def test_every_component_of_kdx_is_exported_by_its_package() -> None:
    from kdx.registry import KINDS

    packages = {"knowledge": "knowledge", "scheme": "schemes", "assistant": "assistants", "model": "models"}
    packages |= {"dataset": "datasets", "task": "tasks", "student": "students"}
    for kind in packages.keys() & set(KINDS):
        for found in kdx.plugins().components(kind).values():
            if found[0].plugin == "kdx-builtin":
                module, _, name = found[0].spec.target.partition(":")
                if module.split(".")[1] == packages[kind]:
                    assert name in importlib.import_module(f"kdx.{packages[kind]}").__all__


INSIDE = ROOT / "docs" / "kernels" / "adding-an-op.md"  # for authors of kdx itself: its files are kdx's own


def authors_files() -> list[Path]:
    """The files that an author reads or starts from: packages, templates, documents, benchmarks."""
    found = [
        *(ROOT / "plugins").rglob("*.py"),
        *(ROOT / "kdx" / "templates").rglob("*.py.j2"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "bench").rglob("*.py"),
        *(ROOT / "kdx").rglob("README.md"),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
    ]
    return sorted(path for path in found if path != INSIDE)


def names_of_kdx(text: str) -> list[str]:
    """Every dotted name that is imported from kdx or written as ``kdx.x.y``, in code, docstrings and prose."""
    found = []

    def imported(match: re.Match[str]) -> str:
        names = re.sub(r"#.*", "", match[2]).strip("() \n")
        found.extend(f"{match[1]}.{name.split()[0]}" for name in names.split(",") if name.strip())
        return ""

    rest = re.sub(r"\bfrom (kdx(?:\.\w+)*) import (\([^)]*\)|.*)", imported, text)
    return found + re.findall(r"(?<![\w./:-])kdx(?:\.[A-Za-z_]\w*)+(?![\w-]*[/@])", rest)


def resolves(dotted: str) -> bool:
    """Whether a dotted name leads from kdx over public names alone, as far as there are packages."""
    value: object = kdx
    for part in dotted.split(".")[1:]:
        if isinstance(value, ModuleType):
            if part not in (*value.__all__, "__all__"):
                return False
        elif part.startswith("_"):
            return False
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def inherited_private_names(text: str) -> list[str]:
    """``self._name`` of a file that neither defines nor sets it, so that it can only come from a base class."""
    used = re.findall(r"\bself\.(_[a-z]\w*)", text)
    set_here = r"\bself\.{0}\b(?:: [^=\n]+)? =|\bdef {0}\b|^    {0}\b ?[:=]"
    return [name for name in used if not re.search(set_here.format(name), text, re.MULTILINE)]


@pytest.mark.parametrize("path", authors_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_authors_need_public_names_only(path: Path) -> None:
    text = path.read_text()
    wrong = [name for name in names_of_kdx(text) if not resolves(name)]
    assert wrong + inherited_private_names(text) == []


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("from kdx.knowledge import DKD, Knowledge", []),
        ("from kdx.knowledge.functional import dkd", []),
        ("from kdx.schemes.base import check_ready", ["kdx.schemes.base.check_ready"]),
        ("from kdx.capture import (\n    Taps,  # all of them\n)", ["kdx.capture.Taps"]),
        ("from kdx.knowledge import dkd", ["kdx.knowledge.dkd"]),
        ("import kdx.stage", ["kdx.stage"]),
        ("    >>> from kdx.batch import Batch as B", ["kdx.batch.Batch"]),
        ("x = kdx.schemes.base.naming", ["kdx.schemes.base.naming"]),
        ("x = kdx.Batch.of, kdx.plugins().names", []),
        ("`kdx.Scheme.no_such_method`", ["kdx.Scheme.no_such_method"]),
    ],
)
def test_the_check_of_names_sees(code: str, wrong: list[str]) -> None:
    assert [name for name in names_of_kdx(code) if not resolves(name)] == wrong


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("x = self._taps(batch)", ["_taps"]),
        ("self._rows: Tensor = rows\ny = self._rows[0]", []),
        ("def _freeze(self): ...\nself._freeze()", []),
        ("class A:\n    _rows = 1\n    x = self._rows", []),
    ],
)
def test_the_check_of_private_names_sees(code: str, wrong: list[str]) -> None:
    assert inherited_private_names(code) == wrong
