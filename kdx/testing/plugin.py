"""Checks of a plugin package: its entry point, its hooks and the components it lists."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

import typer

from kdx.cli.app import app
from kdx.cli.commands import command_of
from kdx.errors import PluginError, nearest
from kdx.hookspecs import PROJECT
from kdx.options import options_of
from kdx.ref import Ref
from kdx.registry import KINDS, Kind, Plugins
from kdx.spec import Spec
from kdx.stage import Term
from kdx.testing.check import Check, bind, fail, require, run_all

__all__ = ["check_plugin", "plugin_checks"]

_OP = re.compile(r"[a-z][a-z0-9_]*(/[a-z][a-z0-9_-]*)?")
_KEBAB = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class _Plugin:
    """The plugin that is checked: its module, or the entry point that leads to it."""

    name: str
    module: ModuleType | None
    entry: EntryPoint | None

    def load(self) -> object:
        return self.entry.load() if self.entry is not None else self.module

    def registry(self) -> Plugins:
        """Kdx's own components and this plugin, nothing else; raises where the plugin is broken."""
        plugins, plugin = Plugins(entries=(), blocked=(), strict=True, trace=False), self.load()
        if not plugins.manager.is_registered(plugin):  # kdx's own is
            plugins.register(plugin, self.name)
        return plugins

    def specs(self) -> Iterator[tuple[Kind, Spec]]:
        plugins = self.registry()
        registered = plugins.manager.get_name(self.load())
        for kind in KINDS:
            for found in plugins.components(kind).values():
                yield from ((kind, item.spec) for item in found if item.plugin == registered)


def check_plugin(plugin: ModuleType | str, *, expected_failures: Mapping[str, str] | None = None) -> None:
    """Runs every check of a plugin.

    Args:
        plugin: the name of its installed entry point of group ``kdx``, or the module that the entry point names; with
            a module nothing is said about the entry point.
        expected_failures: check name -> why it is known not to hold. One that holds after all is an error.

    Raises:
        CheckFailed: a check does not hold; the message names each and what it found.

    Example:
        >>> import kdx.builtin
        >>> from kdx.testing.plugin import plugin_checks
        >>> [check.name for check in plugin_checks(kdx.builtin)][:2]
        ['hooks', 'lists_components']
    """
    run_all(plugin_checks(plugin, expected_failures=expected_failures))


def plugin_checks(plugin: ModuleType | str, *, expected_failures: Mapping[str, str] | None = None) -> list[Check]:
    """The checks of a plugin."""
    if isinstance(plugin, ModuleType):
        found = _Plugin(plugin.__name__, plugin, None)
    elif isinstance(plugin, str):
        found = _Plugin(plugin, None, _entry(plugin))
    else:
        raise TypeError(f"plugin: expected a module or the name of an entry point, got {plugin!r}")
    functions = list(_applicable(found))
    return bind(f"plugin {found.name!r}", functions, found, expected_failures=expected_failures)


def _entry(name: str) -> EntryPoint:
    installed = entry_points(group=PROJECT)
    matching = [entry for entry in installed if entry.name == name]
    if not matching:
        raise PluginError(
            f"no installed package has an entry point {name!r} of group {PROJECT!r}; "
            f"{nearest(name, installed.names)}. Install the package (pip install -e .), or give its module"
        )
    if len(matching) > 1:
        places = " and ".join(entry.value for entry in matching)
        raise PluginError(f"several packages have an entry point {name!r} of group {PROJECT!r}: {places}")
    return matching[0]


def _applicable(plugin: _Plugin) -> Iterator[Callable[[_Plugin], None]]:
    if plugin.entry is not None:
        yield check_entry_point
    yield check_hooks
    yield check_lists_components
    yield check_names
    yield check_targets
    yield check_imports_no_torch


def check_entry_point(plugin: _Plugin) -> None:
    """The entry point resolves to a module or an object, and its name is kebab-case."""
    require(_KEBAB.fullmatch(plugin.name) is not None, f"the entry point's name {plugin.name!r} is not kebab-case")
    plugin.load()


def check_hooks(plugin: _Plugin) -> None:
    """It implements at least one hook, all of them exist, and every argument is one that the hook has."""
    plugin.registry()


def check_lists_components(plugin: _Plugin) -> None:
    """It lists ``Spec`` objects, each with a summary of one line."""
    for kind, spec in plugin.specs():
        one_line = isinstance(spec.summary, str) and 0 < len(spec.summary) <= 100 and "\n" not in spec.summary
        require(
            one_line, f"{kind} {spec.name!r}: the summary is {spec.summary!r}, not one line of at most 100 characters"
        )


def check_names(plugin: _Plugin) -> None:
    """Names are kebab-case (those of ops snake_case) and free: neither kdx nor the plugin itself has another component
    of the kind that is so named.
    """
    plugins = plugin.registry()
    for kind, spec in plugin.specs():
        if kind == "op":
            well = _OP.fullmatch(spec.name) is not None
            require(well, f"op {spec.name!r}: expected a name in snake_case, or 'op/backend' for a backend")
        else:
            require(_KEBAB.fullmatch(spec.name) is not None, f"{kind} {spec.name!r}: the name is not kebab-case")
        if kind == "command":
            own = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group
            require(spec.name not in own, f"command {spec.name!r}: kdx has a command of this name; choose another")
        claims = [item.plugin for item in plugins.components(kind)[spec.name]]
        require(len(claims) == 1, f"{kind} {spec.name!r} is claimed by {claims}; choose another name")


def check_targets(plugin: _Plugin) -> None:
    """Every component imports and is of its kind: a subclass of the kind's base, a callable with documentation, or a
    command that typer can read; a recipe can give the options of a component.
    """
    plugins = plugin.registry()
    for kind, spec in plugin.specs():
        target = plugins.load(kind, spec.name)
        if "/" in spec.name:
            missing = [name for name in ("unsupported", "forward") if not callable(getattr(target, name, None))]
            require(not missing, f"backend {spec.name!r}: {spec.target} defines no function {missing}")
            continue
        if kind == "command":
            command_of(target)
            continue
        taken = Term.keys if kind in ("knowledge", "task") else Ref.keys
        for option in options_of(target) if kind != "op" else []:
            require(
                option.name not in taken,
                f"{kind} {spec.name!r}: its option {option.name!r} cannot be given in a recipe, where it is a key of "
                "the section; choose another name",
            )
        require(bool(inspect.getdoc(target)), f"{kind} {spec.name!r}: {spec.target} has no docstring")


def check_imports_no_torch(plugin: _Plugin) -> None:
    """Importing the plugin and listing its components imports no torch, so that ``kdx list`` stays fast."""
    if plugin.entry is not None:
        module = plugin.entry.module
    else:
        assert plugin.module is not None
        module = plugin.module.__name__
    importlib.import_module(module)
    code = (
        f"import importlib, sys; sys.path[:] = {sys.path!r}\n"
        f"plugin = importlib.import_module({module!r})\n"
        "hooks = [f for n, f in vars(plugin).items() if n.startswith('kdx_') and hasattr(f, 'kdx_impl')]\n"
        "for hook in hooks:\n"
        "    if not hook.__code__.co_argcount: list(hook())\n"
        "print(*(name for name in ('torch', 'numpy', 'accelerate') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        fail(f"in a new process {module!r} does not import: {done.stderr.strip().splitlines()[-1]}")
    require(
        not done.stdout.split(),
        f"importing {module!r} imports {', '.join(done.stdout.split())}; name components as import strings in "
        "kdx.Spec and import their modules nowhere in it",
    )
