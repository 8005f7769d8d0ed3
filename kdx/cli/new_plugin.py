"""``kdx new-plugin``: a complete plugin package that passes its own tests, to start from."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdx import __version__
from kdx.errors import KdxError, UnknownNameError, nearest
from kdx.files import named
from kdx.registry import BUILTIN, Kind, default_plugins

__all__ = ["new_plugin"]

_HOOKS: Mapping[str, str] = {
    "knowledge": "knowledge",
    "scheme": "schemes",
    "assistant": "assistants",
    "model": "models",
    "dataset": "datasets",
    "task": "tasks",
    "student": "students",
    "op": "ops",
}
_HEADINGS = {
    "knowledge": "Knowledge components",
    "scheme": "Schemes",
    "assistant": "Teacher assistants",
    "model": "Models",
    "dataset": "Data sets",
    "task": "Tasks",
    "student": "Ways of deriving a student",
    "op": "The op and its backends",
}
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def new_plugin(name: str, kind: str, folder: Path) -> Path:
    """Writes a package with one working example component, its entry point, tests and README.

    Args:
        name: of the package, the entry point and the folder: kebab-case, as ``kdx-my-loss``. The component is named
            so too, without ``kdx-``.
        kind: ``"knowledge"``, ``"scheme"``, ``"assistant"``, ``"model"``, ``"dataset"``, ``"task"``,
            ``"student"`` or ``"op"``.
        folder: where the folder ``name`` is made.

    Returns:
        The new folder. It appears complete or not at all.

    Raises:
        UnknownNameError: no such kind.
        KdxError: the name cannot be one, a component of kdx has it, or the folder exists.
    """
    if kind not in _HOOKS:
        raise UnknownNameError(f"there is no kind of plugin {kind!r}; {nearest(kind, _HOOKS)}")
    names = _names(name, kind)
    target = folder / name
    if target.exists():
        raise KdxError(f"{target} exists already and is left as it is; choose another name or folder")
    files = _files(kind, names)
    with named(target, "made"):
        _write(files, folder, target)
    return target


def _write(files: Mapping[str, str], folder: Path, target: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-plugin-") as scratch:
        draft = Path(scratch, target.name)
        for path, text in files.items():
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            (draft / path).write_text(text, encoding="utf-8")
        draft.chmod(0o777 & ~_umask())
        try:
            os.rename(draft, target)  # fails if a folder with something in it has appeared meanwhile
        except OSError as error:
            raise KdxError(f"{target} cannot be made: {error.strerror}") from error
        shutil.rmtree(draft, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _names(name: str, kind: str) -> dict[str, Any]:
    """Everything that is derived from the package's name."""
    if not _NAME.fullmatch(name):
        better = re.sub(r"[^a-z0-9]+", "-", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()).strip("-")
        hint = f"; {better!r} would do" if _NAME.fullmatch(better) else ""
        raise KdxError(
            f"{name!r} is no name for a plugin: expected kebab-case, small letters and digits in words that are joined "
            f"by '-', beginning with a letter{hint}"
        )
    package, component = name.replace("-", "_"), name.removeprefix("kdx-")
    if package == "kdx_ext" or keyword.iskeyword(package) or importlib.util.find_spec(package) is not None:
        raise KdxError(
            f"{name!r} would make a module {package!r}, which Python, kdx or an installed package has already; choose "
            "another name"
        )
    symbol = "".join(word.capitalize() for word in component.split("-"))
    if kind == "op":
        component = component.replace("-", "_")
    if not component[0].isalpha() or keyword.iskeyword(component):
        raise KdxError(
            f"{name!r} would make {_article(kind)} {kind} named {component!r}, which is no name; choose another one"
        )
    checked: Kind = kind  # type: ignore[assignment]  # a key of _HOOKS
    taken = default_plugins().components(checked).get(component, [])
    if any(item.plugin == BUILTIN for item in taken):
        raise KdxError(f"kdx has {_article(kind)} {kind} named {component!r} already; choose another name")
    return {
        "name": name,
        "package": package,
        "component": component,
        "symbol": symbol,
        "kind": kind,
        "article": _article(kind),
        "hook": _HOOKS[kind],
        "heading": _HEADINGS[kind],
        "module": "api" if kind == "op" else kind,
        "version": __version__,
    }


def _article(kind: str) -> str:
    return "an" if kind in ("assistant", "op") else "a"


def _files(kind: str, names: Mapping[str, Any]) -> dict[str, str]:
    """Path in the package -> text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("kdx", "templates/plugin"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    package = names["package"]
    templates = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{package}/__init__.py": "__init__.py",
        f"{package}/py.typed": "py.typed",
        f"{package}/plugin.py": "plugin.py",
        f"{package}/{names['module']}.py": f"{kind}.py",
        "tests/test_plugin.py": "test_plugin.py",
        f"tests/test_{kind}.py": f"test_{kind}.py",
    }
    if kind == "op":
        templates |= {f"{package}/{each}.py": f"{each}.py" for each in ("reference", "fused")}
    return {path: environment.get_template(f"{each}.j2").render(names) for path, each in templates.items()}
