"""Commands of plugins: listed beside those of kdx, imported when they are called."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from kdx.errors import PluginError, PluginWarning, UnknownNameError

__all__ = ["Commands", "command_of"]


class Commands(TyperGroup):
    """The commands of kdx, and those that the hook ``kdx_commands`` of installed plugins names.

    A command of a plugin never takes the place of one of kdx's: that is a warning, and the plugin's is left out.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """The names for ``kdx --help``, those of plugins last."""
        own, found = super().list_commands(ctx), _found()
        for name in [name for name in found if name in own]:
            plugin = found[name][0].plugin
            warnings.warn(
                f"plugin {plugin!r} has a command {name!r}, as kdx has; that of kdx runs, rename the plugin's",
                PluginWarning,
                stacklevel=2,
            )
        return [*own, *(name for name in found if name not in own)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name; of a plugin one that imports the plugin's when it is called.

        Raises:
            UnknownNameError: a package of kdx that is not installed has it.
            PluginError: two plugins have it.
        """
        if (own := super().get_command(ctx, cmd_name)) is not None:
            return own
        if cmd_name in (found := _found()):
            return OfPlugin(cmd_name, found[cmd_name][0].spec.summary)
        from kdx.registry import ELSEWHERE

        for package, provided in ELSEWHERE.items():
            if cmd_name in provided.get("command", ()):
                raise UnknownNameError(
                    f"there is no command {cmd_name!r} yet: it is provided by {package}; pip install {package}"
                )
        return None


class OfPlugin(TyperCommand):
    """Stands for a command of a plugin in ``kdx --help``, and is the plugin's own from its first argument on.

    Args:
        name: of the command.
        summary: a line for the list.
    """

    def __init__(self, name: str, summary: str) -> None:
        super().__init__(name=name, callback=None, short_help=summary, rich_markup_mode=None)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Imports the plugin's command and lets it read the arguments.

        Raises:
            PluginError: it does not import, or is no command; the plugin is named.
        """
        from kdx.registry import default_plugins

        plugins, name = default_plugins(), str(self.name)
        target = plugins.load("command", name)
        try:
            command = command_of(target)
        except TypeError as error:
            plugin = plugins.get("command", name).plugin
            raise PluginError(f"command {name!r} of plugin {plugin!r} ({plugins.label(plugin)}): {error}") from None
        return command.make_context(info_name, args, parent=parent, **extra)


def command_of(target: object) -> Any:
    """The command that a plugin's target is: a ``typer.Typer``, or a function that typer can read.

    Raises:
        TypeError: it is something else.
    """
    if inspect.isroutine(target):
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command()(target)
        target = app
    if not isinstance(target, typer.Typer):
        raise TypeError(f"expected a typer.Typer or a function, got {target!r}")
    return typer.main.get_command(target)


def _found() -> Mapping[str, list[Any]]:
    """Name -> the plugins' components of the kind ``command``."""
    if "kdx.registry" not in sys.modules and not entry_points(group="kdx"):
        return {}  # nothing is installed; reading the registry would take a tenth of the time of ``kdx --help``
    from kdx.registry import default_plugins

    return default_plugins().components("command")
