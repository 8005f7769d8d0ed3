"""The registry: plugin packages found by entry point, and the components they provide.

This module is not called ``plugins`` because ``kdx.plugins()`` is a public function and importing a submodule of that
name would replace it.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import pluggy

from kdx import __version__, hookspecs
from kdx.errors import PluginError, PluginWarning, UnknownNameError, nearest
from kdx.hookspecs import PROJECT
from kdx.own_files import OwnFiles, is_own
from kdx.ref import Ref
from kdx.spec import Spec

__all__ = ["KINDS", "Component", "Kind", "Plugins", "default_plugins", "imported"]

T = TypeVar("T")
Kind = Literal["knowledge", "scheme", "assistant", "model", "dataset", "task", "student", "op", "command"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_HOOK = {
    "knowledge": "kdx_knowledge",
    "scheme": "kdx_schemes",
    "assistant": "kdx_assistants",
    "model": "kdx_models",
    "dataset": "kdx_datasets",
    "task": "kdx_tasks",
    "student": "kdx_students",
    "op": "kdx_ops",
    "command": "kdx_commands",
}
_BASE = {
    "knowledge": "kdx.knowledge.base:Knowledge",
    "scheme": "kdx.schemes.base:Scheme",
    "assistant": "kdx.assistants.base:Assistant",
    "task": "kdx.tasks.base:Task",
    "student": "kdx.students.derivation:Derivation",
}
"""The base class of a kind's components, where there is one; imported when a component is."""
BUILTIN = "kdx-builtin"
SLOW = 0.2
"""Seconds from which on the import of a plugin is slow: it makes every ``kdx`` command wait."""
ELSEWHERE: Mapping[str, Mapping[Kind, tuple[str, ...]]] = {
    "kdx-eskd": {"assistant": ("early-stopped-teacher",)},
    "kdx-function-matching": {"scheme": ("function-matching",)},
    "kdx-mgd": {"knowledge": ("mgd",)},
    "kdx-prune": {
        "assistant": ("iterative-pruning", "minitron"),
        "model": ("pruned",),
        "student": ("prune", "prune-blocks", "semi-structured"),
    },
    "kdx-quant": {
        "assistant": ("int8-teacher", "qkd"),
        "scheme": ("co-studying",),
        "student": ("quantise", "store-int8"),
    },
    "kdx-search": {
        "command": ("search",),
        "assistant": ("from-supernet",),
        "knowledge": ("weighted-soft-targets",),
        "scheme": ("block-wise", "supernet"),
        "student": ("kernel",),
    },
    "kdx-template": {"knowledge": ("transformed-teacher",)},
    "kdx-text": {
        "dataset": ("hf", "shakespeare", "text", "token-stream", "two-tokenizers", "wordnet-glosses", "wordnet-pieces"),
        "model": ("hf-causal-lm", "hf-encoder", "minilm", "smollm2"),
    },
    "kdx-vision": {"dataset": ("torchvision",), "model": ("timm", "torchvision")},
}
"""Package -> kind -> names of components that it provides once it is installed; those of kdx's own repository."""
_HEAVY = ("torch", "numpy", "accelerate", "transformers", "matplotlib", "pydantic")
_OTHER_VERSION = f"; or it was built for another version of kdx than {__version__}"


@dataclass(frozen=True, slots=True)
class Component:
    """A component and the plugin that provides it."""

    kind: Kind
    spec: Spec
    plugin: str


@dataclass(slots=True)
class PluginInfo:
    """The state of one plugin package: loaded, blocked or broken.

    Args:
        name: the entry point's name.
        distribution: the package's name on the index.
        version: its version.
        module: what the entry point points at.
        status: ``"loaded"``, ``"blocked"`` or ``"broken"``.
        cause: why it is broken, else None.
        seconds: time its import took.
        heavy: large packages that its import pulled in, which no plugin needs to list its components.
    """

    name: str
    distribution: str
    version: str
    module: str
    status: Literal["loaded", "blocked", "broken"] = "loaded"
    cause: str | None = None
    seconds: float = 0.0
    heavy: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}"


class Plugins:
    """Loads plugin packages one by one, so that a broken one cannot take the others down.

    Args:
        strict: raise on the first broken package instead of warning and leaving it out.
        blocked: names of plugins or distributions to leave out; None reads ``KDX_PLUGINS_DISABLED`` (comma-separated).
        trace: print every hook call to stderr; None reads ``KDX_PLUGINS_TRACE``.
        entries: entry points to load; None takes the installed ones of group ``kdx``.

    Raises:
        PluginError: only if ``strict`` and a package is broken.
    """

    def __init__(
        self,
        *,
        strict: bool = False,
        blocked: Iterable[str] | None = None,
        trace: bool | None = None,
        entries: Iterable[EntryPoint] | None = None,
    ) -> None:
        self.strict = strict
        self.files: OwnFiles | None = None
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(hookspecs)
        if blocked is None:
            blocked = os.environ.get("KDX_PLUGINS_DISABLED", "").split(",")
        self.blocked = {name.strip() for name in blocked if name.strip()}
        self.infos: list[PluginInfo] = []
        self.changed: list[Callable[[], None]] = []  # told when a plugin is registered later
        if trace if trace is not None else os.environ.get("KDX_PLUGINS_TRACE", "0") not in ("", "0"):
            self.manager.trace.root.setwriter(sys.stderr.write)
            self.manager.enable_tracing()
        self._components: dict[Kind, dict[str, list[Component]]] = {}
        self.register(importlib.import_module("kdx.builtin"), BUILTIN)
        found = entry_points(group=PROJECT) if entries is None else entries
        for entry in sorted(found, key=lambda entry: (entry.name, entry.value)):
            self._load(entry)

    def beside(self, files: OwnFiles) -> Plugins:
        """The same registry, in which a name such as ``my_models.py:Net`` stands for a component in one of these files.

        Without them no such name is known: a text alone runs no file.
        """
        found = copy.copy(self)
        found.files = files
        return found

    def register(self, plugin: object, name: str) -> None:
        """Registers a module or object as a plugin, checking every hook it implements.

        Raises:
            PluginError: an unknown hook or argument, or a name that is taken (all with the nearest right one).
        """
        info = PluginInfo(name, "kdx" if name == BUILTIN else "(registered in this process)", "", _module_of(plugin))
        self._add(plugin, info, strict=True)
        self._components.clear()
        for tell in self.changed:
            tell()

    def components(self, kind: Kind) -> dict[str, list[Component]]:
        """Name -> the components that claim it (more than one is a clash), in the order of the names.

        Raises:
            UnknownNameError: no such kind.
        """
        if kind not in KINDS:
            raise UnknownNameError(f"there is no kind of component {kind!r}; {nearest(kind, KINDS)}")
        if kind not in self._components:
            found: dict[str, list[Component]] = {}
            caller = getattr(self.manager.hook, _HOOK[kind])
            for implementation in caller.get_hookimpls():
                for spec in self._given(implementation, Spec, "kdx.Spec objects"):
                    found.setdefault(spec.name, []).append(Component(kind, spec, implementation.plugin_name))
            self._components[kind] = dict(sorted(found.items()))
        return self._components[kind]

    def get(self, kind: Kind, name: str) -> Component:
        """The component of this name.

        Raises:
            UnknownNameError: there is none; the nearest names are listed.
            PluginError: two packages claim the name.
        """
        found = self.components(kind).get(name)
        if found is None:
            for package, provided in ELSEWHERE.items():
                if name in provided.get(kind, ()):
                    raise UnknownNameError(
                        f"there is no {kind} named {name!r} yet: it is provided by {package}; pip install {package}"
                    )
            raise UnknownNameError(f"there is no {kind} named {name!r}; {nearest(name, self.components(kind))}")
        if len(found) > 1:
            claims = " and ".join(f"plugin {item.plugin!r} ({self.label(item.plugin)})" for item in found)
            other = next((item.plugin for item in found if item.plugin != BUILTIN), found[-1].plugin)
            raise PluginError(
                f"{kind} {name!r} is provided by {claims}; leave one out, for instance with "
                f"KDX_PLUGINS_DISABLED={other}"
            )
        return found[0]

    def load(self, kind: Kind, name: str) -> Any:
        """Imports a component and returns it, a class or another callable.

        Raises:
            UnknownNameError: there is none of this name.
            PluginError: its target does not import or is not of its kind; the plugin is named.
        """
        if is_own(name):
            where, target = f"{kind} {name!r}", self._own(kind, name)
        else:
            component = self.get(kind, name)
            where = (
                f"{kind} {name!r} of plugin {component.plugin!r} ({self.label(component.plugin)}) points at "
                f"{component.spec.target!r}, which"
            )
            try:
                target = imported(component.spec.target)
            except Exception as error:
                raise PluginError(f"{where} does not import: {type(error).__name__}: {error}") from error
        if not callable(target) and "/" not in name:  # a backend of an op is a module
            raise PluginError(
                f"{where} is {target!r}, not a class or function"
                + ("" if is_own(name) else "; write it as 'package.module:Class' in kdx.Spec")
            )
        if kind in _BASE:
            base = imported(_BASE[kind])
            if not (inspect.isclass(target) and issubclass(target, base)):
                raise PluginError(f"{where} is {target!r}, not a subclass of kdx.{base.__name__}")
        return target

    def packages(self) -> frozenset[str]:
        """The top-level packages that hold the components: ``kdx`` and those of the plugins."""
        found = (item for kind in KINDS for items in self.components(kind).values() for item in items)
        return frozenset({"kdx", *(item.spec.target.partition(":")[0].partition(".")[0] for item in found)})

    def _own(self, kind: Kind, name: str) -> Any:
        if self.files is None:
            raise UnknownNameError(
                f"{kind} {name!r} is in a file, which only a recipe can name; in Python import the file, and give the "
                "object itself"
            )
        return self.files.load(name)

    def make(self, kind: Kind, name: str | Ref, /, *args: Any, **options: Any) -> Any:
        """Builds a component by name, or by a reference, whose options are added to those given.

        Raises:
            TypeError: an option the component does not have; its options are listed.
        """
        if isinstance(name, Ref):
            options = {**name.options, **options}
            name = name.name
        target = self.load(kind, name)
        signature = inspect.signature(target)
        try:
            signature.bind(*args, **options)
        except TypeError as error:
            known = [parameter for parameter in signature.parameters if parameter not in ("self", "args", "kwargs")]
            wrong = [option for option in options if option not in signature.parameters]
            hint = f"; {nearest(wrong[0], known)}" if wrong else ""
            raise TypeError(f"{kind} {name!r}: {error}{hint}. Its signature is {name}{signature}") from None
        return target(*args, **options)

    def _load(self, entry: EntryPoint) -> None:
        distribution = entry.dist.name if entry.dist else "(unknown distribution)"
        info = PluginInfo(entry.name, distribution, entry.dist.version if entry.dist else "", entry.value)
        if {entry.name, distribution} & self.blocked:
            info.status = "blocked"
            self.infos.append(info)
            return
        if unmet := _unmet(entry):
            self.infos.append(info)
            self._broken(info, unmet, None, strict=self.strict)
            return
        start, before = time.perf_counter(), set(_HEAVY) & sys.modules.keys()
        try:
            plugin = entry.load()
        except (Exception, SystemExit) as error:
            self.infos.append(info)
            self._broken(info, f"{type(error).__name__}: {error}{_hint(error)}", error, strict=self.strict)
            return
        info.seconds = time.perf_counter() - start
        info.heavy = tuple(name for name in _HEAVY if name in sys.modules and name not in before)
        self._add(plugin, info, strict=self.strict)

    def _add(self, plugin: object, info: PluginInfo, *, strict: bool) -> None:
        other = next((each for each in self.infos if each.name == info.name), None)
        self.infos.append(info)
        if other is not None and self.manager.get_plugin(info.name) is not None:
            cause = (
                f"a plugin of this name is already registered, by {other.label} ({other.module}); one of the two "
                "packages has to rename its entry point"
            )
            self._broken(info, cause, None, strict=strict)
            return
        try:
            self.manager.register(plugin, name=info.name)
        except (ValueError, pluggy.PluginValidationError) as error:
            if self.manager.get_plugin(info.name) is plugin:
                self.manager.unregister(plugin)
            hint = _OTHER_VERSION if isinstance(error, pluggy.PluginValidationError) else ""
            self._broken(info, str(error).replace("\n", " ") + hint, error, strict=strict)
            return
        if wrong := self._wrong_hooks(plugin):
            self.manager.unregister(plugin)
            self._broken(info, wrong, None, strict=strict)

    def _wrong_hooks(self, plugin: object) -> str | None:
        """The fault in the hooks of a plugin that pluggy has registered, or None."""
        known = [name for name in dir(hookspecs) if name.startswith("kdx_")]
        callers = self.manager.get_hookcallers(plugin) or []
        if unknown := [caller.name for caller in callers if not caller.has_spec()]:
            return f"it implements an unknown hook {unknown[0]!r}; {nearest(unknown[0], known)}{_OTHER_VERSION}"
        marked = {caller.name for caller in callers}
        if unmarked := [name for name in known if hasattr(plugin, name) and name not in marked]:
            return f"its {unmarked[0]} is not marked; write @kdx.hookimpl above it"
        if not callers:
            return (
                "it implements no hook; the entry point has to name the module of the functions that @kdx.hookimpl "
                f"marks, as {known[0]}"
            )
        return None

    def _broken(self, info: PluginInfo, cause: str, error: BaseException | None, *, strict: bool) -> None:
        info.status, info.cause = "broken", cause
        message = f"plugin {info.name!r} of {info.label} ({info.module}) was left out: {cause}"
        if strict:
            raise PluginError(message) from error
        warnings.warn(message, PluginWarning, stacklevel=2)

    def recipes(self) -> dict[str, Path]:
        """Name -> file of the recipes that come with kdx and with the plugins, in the order of the names.

        Raises:
            PluginError: two packages have a recipe of one name.
        """
        found: dict[str, Path] = {}
        homes: dict[str, str] = {}
        for implementation in self.manager.hook.kdx_recipes.get_hookimpls():
            plugin = implementation.plugin_name
            for path in self._given(implementation, Path, "pathlib.Path objects"):
                if path.stem in homes:
                    raise PluginError(
                        f"recipe {path.stem!r} comes with plugin {homes[path.stem]!r} ({self.label(homes[path.stem])}) "
                        f"and plugin {plugin!r} ({self.label(plugin)}); leave one out, for instance with "
                        f"KDX_PLUGINS_DISABLED={plugin}"
                    )
                found[path.stem], homes[path.stem] = path, plugin
        return dict(sorted(found.items()))

    def _given(self, implementation: Any, kind: type[T], expected: str) -> list[T]:
        """The objects that a hook of a plugin gives; none, and the plugin is broken, where it gives anything else."""
        info = next(info for info in self.infos if info.name == implementation.plugin_name)
        hook = implementation.function.__name__
        try:
            found = implementation.function()
            given = list(found) if isinstance(found, Iterable) else None
        except Exception as error:
            self._broken(info, f"its {hook} raised {type(error).__name__}: {error}", error, strict=self.strict)
            return []
        wrong = [found] if given is None else [each for each in given if not isinstance(each, kind)]
        if given is None or wrong:
            self._broken(info, f"its {hook} gave {wrong[0]!r}, expected {expected} in a list", None, strict=self.strict)
            return []
        return given

    def label(self, plugin: str) -> str:
        """Distribution and version of a plugin."""
        return next((info.label.strip() for info in self.infos if info.name == plugin), plugin)


@functools.cache
def default_plugins() -> Plugins:
    """The registry of this process: kdx's own components and every installed plugin package."""
    return Plugins()


def imported(target: str) -> Any:
    """The object that an import string, ``"package.module:Class"``, names."""
    module, _, attribute = target.partition(":")
    return functools.reduce(getattr, filter(None, attribute.split(".")), importlib.import_module(module))


def _unmet(entry: EntryPoint) -> str | None:
    """The requirement on kdx's version that this one does not meet, or None."""
    for line in (entry.dist.requires if entry.dist else None) or ():
        if re.match(r"kdx\s*[\[(<>=!~]", line):
            from packaging.requirements import Requirement

            wanted = Requirement(line)
            applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            if applies and not wanted.specifier.contains(__version__, prereleases=True):
                return f"it needs kdx{wanted.specifier}, this is kdx {__version__}; update one of the two"
    return None


def _hint(error: BaseException) -> str:
    if isinstance(error, ImportError) and ("circular import" in str(error) or "partially initialized" in str(error)):
        return (
            ". Its modules import each other: the module of hooks names components as import strings and imports "
            "nothing of its own package"
        )
    return ""


def _module_of(plugin: object) -> str:
    return getattr(plugin, "__name__", type(plugin).__module__)
