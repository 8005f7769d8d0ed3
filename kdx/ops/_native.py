"""The compiled modules of ``kdx_ext``: which were built, and why the others were not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from kdx.errors import BackendError

__all__ = ["build_info", "changed", "compiled", "native", "not_built", "overridden", "override"]

_overrides: dict[str, Any] = {}
changed: list[Callable[[], None]] = []
"""Called when a module starts or stops standing in for a compiled one."""


@cache
def build_info() -> dict[str, Any]:
    """The outcome of the build of ``kdx_ext``: ``mode``, why ``cpu`` and ``cuda`` are missing, compilers, archs."""
    spec = find_spec("kdx_ext")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder, "build_info.json")
        if file.exists():
            info: dict[str, Any] = json.loads(file.read_text())
            return info
    reason = "kdx_ext was not built; run `pip install .`, or `python setup.py build_ext --inplace` in a checkout"
    return {"mode": "none", "cpu": reason, "cuda": reason}


@cache
def compiled(kind: str) -> tuple[ModuleType | None, str]:
    """The module ``kdx_ext._<kind>``, or None and the reason."""
    try:
        return import_module(f"kdx_ext._{kind}"), ""
    except ImportError as error:
        return None, build_info().get(kind) or f"kdx_ext._{kind} does not import: {error}"


def native(kind: str, function: str | None = None) -> Any:
    """The compiled module ``kdx_ext._cpu`` or ``kdx_ext._cuda``, or a function of it.

    Raises:
        BackendError: there is no such module, or it was built before the function was written.
    """
    module: Any = _overrides.get(kind)
    if module is None:
        module, reason = compiled(kind)
        if module is None:
            raise BackendError(f"backend {kind!r}: {reason}")
    if function is None:
        return module
    if not hasattr(module, function):
        raise BackendError(
            f"backend {kind!r}: kdx_ext._{kind} is older than kdx, it has no {function}; run `pip install .` again, or "
            "`python setup.py build_ext --inplace` in a checkout"
        )
    return getattr(module, function)


def not_built(kind: str) -> str | None:
    """Why there is no such module, or None where there is one."""
    if kind in _overrides:
        return None
    module, reason = compiled(kind)
    return None if module is not None else reason


def overridden(kind: str) -> bool:
    """Whether another module stands in for this one."""
    return kind in _overrides


@contextmanager
def override(kind: str, module: Any) -> Iterator[None]:
    """Let ``module`` stand in for ``kdx_ext._<kind>``; with it the backend ``cuda`` takes CPU tensors. For tests."""
    _overrides[kind] = module
    _tell()
    try:
        yield
    finally:
        del _overrides[kind]
        _tell()


def _tell() -> None:
    for call in changed:
        call()
