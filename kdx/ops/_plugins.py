"""Ops and backends of installed plugins, as their hook ``kdx_ops`` lists them; imported when they are used."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from kdx.errors import PluginError, PluginWarning, nearest

__all__ = ["PluginBackend", "from_plugins"]


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
_told: list[Callable[[], None]] = []


def from_plugins(
    forget: Callable[[], None], ops: Collection[str], taken: Collection[str]
) -> dict[str, dict[str, PluginBackend]]:
    """Op -> backend -> what provides it, read once until another plugin is registered.

    Args:
        forget: called when that happens.
        ops: the ops that kdx has itself.
        taken: names of backends that a plugin cannot use for those.
    """
    global _read  # noqa: PLW0603  # read once a process
    if _read is None:
        from kdx.registry import default_plugins

        _read = {}  # a plugin that is imported now and calls an op does not come here again
        if forget not in _told:
            _told.append(forget)
            default_plugins().changed.extend([_forget, forget])
        _read = _collect(ops, taken)
    return _read


def _forget() -> None:
    global _read  # noqa: PLW0603
    _read = None


def _collect(ops: Collection[str], taken: Collection[str]) -> dict[str, dict[str, PluginBackend]]:
    from kdx.registry import BUILTIN, default_plugins

    plugins = default_plugins()
    listed = {
        name: [item for item in found if item.plugin != BUILTIN] for name, found in plugins.components("op").items()
    }
    new = {name for name, found in listed.items() if found and "/" not in name}
    rows: dict[str, dict[str, PluginBackend]] = {name: {} for name in sorted(new - set(ops))}
    for name, found in listed.items():
        op, slash, backend = name.partition("/")
        if not slash or not found:
            continue
        item, label = found[0], plugins.label(found[0].plugin)
        if op not in ops and op not in new:
            known = nearest(op, {*ops, *new})
            _warn(item.plugin, label, f"{name!r} is a backend of an op that there is not; {known}")
            continue
        if backend == "auto" or (op in ops and backend in taken) or (backend in taken and backend != "reference"):
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
