"""Ops and backends of installed plugins, as their hook ``kdx_ops`` lists them; imported when they are used."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from kdx.errors import PluginError, PluginWarning, nearest
from kdx.ops._declarations import BACKENDS, OPS

if TYPE_CHECKING:
    from kdx.registry import Plugins

__all__ = ["PluginBackend", "changed", "from_plugins"]


@dataclass(frozen=True, slots=True)
class PluginBackend:
    """A backend that a plugin provides.

    Args:
        name: ``"op/backend"``.
        target: its module.
        plugin: the plugin's name.
        label: its distribution and version.
        problem: why it cannot be used, or None.
    """

    name: str
    target: str
    plugin: str
    label: str
    problem: str | None = None

    def load(self) -> ModuleType:
        """Its module.

        Raises:
            PluginError: it does not import or lacks a function; the plugin is named.
        """
        if self.problem is not None:
            raise PluginError(self.problem)
        where = f"backend {self.name!r} of plugin {self.plugin!r} ({self.label}) points at {self.target!r}, which"
        leave_out = f"; KDX_PLUGINS_DISABLED={self.plugin} leaves it out"
        try:
            module = import_module(self.target)
        except Exception as error:
            raise PluginError(f"{where} does not import: {type(error).__name__}: {error}{leave_out}") from error
        if missing := [name for name in ("unsupported", "forward") if not callable(getattr(module, name, None))]:
            raise PluginError(f"{where} defines no function {missing[0]!r}{leave_out}")
        return module


_read: dict[str, dict[str, PluginBackend]] | None = None
_watched: list[Plugins] = []
changed: list[Callable[[], None]] = []
"""Called when another plugin is registered."""


def from_plugins() -> dict[str, dict[str, PluginBackend]]:
    """Op -> backend -> what provides it, read once until another plugin is registered."""
    global _read  # noqa: PLW0603  # read once a process
    if _read is None:
        from kdx.registry import default_plugins

        _read = {}  # a plugin that is imported now and calls an op does not come here again
        plugins = default_plugins()
        if plugins not in _watched:
            _watched.append(plugins)
            plugins.changed.append(_forget)
        _read = _collect(plugins)
    return _read


def _forget() -> None:
    global _read  # noqa: PLW0603
    _read = None
    for call in changed:
        call()


def _collect(plugins: Plugins) -> dict[str, dict[str, PluginBackend]]:
    from kdx.registry import BUILTIN

    ops = {op.family or op.name for op in OPS.values()}  # a backend is listed for the family
    listed = {
        name: [item for item in found if item.plugin != BUILTIN] for name, found in plugins.components("op").items()
    }
    new = {name for name, found in listed.items() if found and "/" not in name}
    rows: dict[str, dict[str, PluginBackend]] = {name: {} for name in sorted(new - OPS.keys())}
    for name, found in listed.items():
        op, slash, backend = name.partition("/")
        if not slash or not found:
            continue
        item, label = found[0], plugins.label(found[0].plugin)
        if op not in ops and op not in new:
            known = nearest(op, {*ops, *new})
            _warn(item.plugin, label, f"{name!r} is a backend of an op that there is not; {known}")
            continue
        if backend == "auto" or (op in ops and backend in BACKENDS) or (backend in BACKENDS and backend != "reference"):
            _warn(item.plugin, label, f"{name!r} has the name of a backend of kdx; choose another name")
            continue
        problem = None
        if len(found) > 1:
            claims = " and ".join(f"plugin {each.plugin!r} ({plugins.label(each.plugin)})" for each in found)
            problem = f"{name!r} is provided by {claims}; leave one out with KDX_PLUGINS_DISABLED={found[-1].plugin}"
        provider = PluginBackend(name, item.spec.target, item.plugin, label, problem)
        rows.setdefault(op, {})[backend] = provider
    return rows


def _warn(plugin: str, label: str, cause: str) -> None:
    warnings.warn(f"a kernel of plugin {plugin!r} ({label}) was left out: {cause}", PluginWarning, stacklevel=2)
