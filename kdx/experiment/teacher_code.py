"""The code that a teacher's training runs: what of it is in the key of a kept teacher."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from kdx.registry import Kind, Plugins

__all__ = ["code_behind"]

KINDS: tuple[Kind, ...] = ("model", "dataset", "task", "student")
"""Components that take part when a teacher is trained; the others teach or are taught."""
_TARGET = re.compile(r"(?<![\w.])([^\W\d]\w*)(?:\.\w+)*:[^\W\d]")
_INSTALLED = {"site-packages", "dist-packages"}


def code_behind(text: str, plugins: Plugins) -> dict[str, str] | None:
    """The code that the parts of a recipe stand for: top-level package or module -> hash of its sources, or version.

    kdx, its kernels as they were built, and the packages of the components that the text names, by name or as
    ``package.module:name``, are hashed as a whole, and so is every module that they import and that no installer put
    where it is, as one beside a script. Of installed packages that they import the version counts.

    Args:
        text: what names the components: options of a recipe, configs.
        plugins: where components come from.

    Returns:
        None if the code of a component is in no file, as of one that was typed into a notebook.
    """
    named = _components(text, plugins)
    found: dict[str, str] = {}
    waiting = {"kdx", "kdx_ext", *named, *_TARGET.findall(text)}
    while waiting:
        top = waiting.pop()
        if top in found or top in sys.stdlib_module_names:
            continue
        files = _files(top)
        if not files:
            if top in named:
                return None
            continue
        version = _version(top) if top not in named and top != "kdx" and _INSTALLED & set(files[0].parts) else None
        found[top] = version or _hash(files)
        if version is None and top != "kdx":
            waiting |= _imports(files)
    return found


def _components(text: str, plugins: Plugins) -> set[str]:
    """The top-level packages of the components whose name is in a text."""
    found = set()
    for kind in KINDS:
        for name, components in plugins.components(kind).items():
            if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text):
                found |= {re.split(r"[.:]", component.spec.target)[0] for component in components}
    return found


def _files(top: str) -> list[Path]:
    """The sources and compiled parts of a package, or the file of a module; nothing is imported."""
    module = sys.modules.get(top)
    if module is None:
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            spec = None
        folders, file = (spec.submodule_search_locations, spec.origin) if spec else (None, None)
    else:
        folders, file = getattr(module, "__path__", None), getattr(module, "__file__", None)
    if folders:
        return sorted(path for each in folders for kind in ("*.py", "*.so", "*.pyd") for path in Path(each).rglob(kind))
    return [Path(file)] if file and Path(file).is_file() else []


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _version(top: str) -> str | None:
    version = getattr(sys.modules.get(top), "__version__", None)
    try:
        return str(version or importlib.metadata.version(top))
    except importlib.metadata.PackageNotFoundError:
        return None


def _imports(files: Iterable[Path]) -> set[str]:
    """The top-level names that sources import, wherever in them that is."""
    found = set()
    for path in files:
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.partition(".")[0])
    return found
