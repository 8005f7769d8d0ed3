"""The rule of trust: what text may run.

A recipe, a command line or a file of a run or a student is text. Text alone runs kdx and the installed plugins, by the
names of their components, and nothing else; every module beyond them has to be trusted by the person who runs it
(``--trust MODULE``, ``trust="MODULE"``). A recipe also runs the ``.py`` files beside it that it names, see
:class:`kdx.own_files.OwnFiles`. What Python code writes itself is the word of whoever runs that code.

This is the only place that imports what a text names; what is registered under a name, :mod:`kdx.registry` imports.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdx.errors import TrustError
from kdx.registry import Plugins, default_plugins, imported

__all__ = ["ENVIRONMENT", "Rule", "Trusted", "current", "trusting"]

ENVIRONMENT = "oc.env"
"""Trusted as a module is: lets ``${oc.env:NAME}`` in a recipe read environment variables."""

Trusted = str | Iterable[str] | Literal[True]
"""The name of a trusted module, with all below it, or the path of a trusted ``.py`` file, or several of them; True: all
that is named.
"""

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, slots=True)
class Rule:
    """Decides which objects a text may name.

    Args:
        modules: trusted beside kdx and the plugins; with each everything below it.
        plugins: whose components and packages are trusted.
        everything: whether every module is.
    """

    modules: frozenset[str]
    plugins: Plugins
    everything: bool = False

    @classmethod
    def of(cls, trust: Trusted = (), plugins: Plugins | None = None) -> Rule:
        """A rule.

        Args:
            trust: one module as ``"my_models"`` or file as ``"../nets.py"``, or several; True: everything.
            plugins: None takes those installed; of those that know a recipe's files these are trusted too.

        Raises:
            TypeError: something in it is no text.
            TrustError: something in it is no name of a module.
        """
        plugins = plugins or default_plugins()
        if trust is True:
            return cls(frozenset(), plugins.beside(plugins.files.trusting(True)) if plugins.files else plugins, True)
        given = [trust] if isinstance(trust, str) else list(trust)
        files = [Path(name) for name in given if isinstance(name, str) and name.endswith(".py")]
        if files and plugins.files:
            plugins = plugins.beside(plugins.files.trusting(files))
        names = [name for name in given if not (isinstance(name, str) and name.endswith(".py"))]
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"trust: expected names of modules, as 'my_models', got {name!r}")
            if not _MODULE.fullmatch(name):
                raise TrustError(f"trust: expected the name of a module, as my_models or my_models.nets, got {name!r}")
        return cls(frozenset(names), plugins)

    @property
    def environment(self) -> bool:
        """Whether a text may read environment variables."""
        return self.everything or ENVIRONMENT in self.modules

    def find(self, target: str, where: str) -> Any:
        """The class or function that a text names, imported only if its module is trusted.

        Without further trust a text may name the model components that are registered and the classes of modules
        (``torch.nn.Module``) that kdx and the plugin packages define; of a trusted module, all that it defines. What a
        module has merely imported, as ``my_models:os.system``, counts as the module's where it comes from.

        Args:
            target: ``package.module:name``.
            where: how messages name the place in the text.

        Raises:
            TrustError: the module, or the one where the object comes from, is not trusted.
            ImportError: the module does not import.
            AttributeError: it has no such object.
            ValueError: the target is not written as above.
        """
        module, _, attribute = target.partition(":")
        if not _MODULE.fullmatch(module) or not attribute:
            raise ValueError("it is not written package.module:name")
        if target in {found.spec.target for each in self.plugins.components("model").values() for found in each}:
            return imported(target)
        told, packages = self._told(module), self.plugins.packages()
        if not told and _root(module) not in packages:
            raise self._refusal(where, target, module, "is neither kdx nor an installed plugin")
        found = imported(target)
        home = getattr(found, "__module__", None) or "builtins"
        if told:
            if not self._told(home):
                raise self._refusal(where, target, home, f"is where {module} has it from")
        elif _root(home) not in packages or not _is_module_class(found):
            raise self._refusal(where, target, module, "has no registered model and no torch.nn.Module of this name")
        return found

    def _told(self, module: str) -> bool:
        return self.everything or any(module == name or module.startswith(f"{name}.") for name in self.modules)

    def _refusal(self, where: str, target: str, module: str, what: str) -> TrustError:
        return TrustError(
            f"{where}: {target!r} is not run: the module {module!r} {what}, and a recipe, a command line or a file "
            f"runs nothing else by itself. If you know what it does, allow it with --trust {module} "
            f"(trust={module!r} in Python)"
        )


def _root(module: str) -> str:
    return module.partition(".")[0]


def _is_module_class(found: Any) -> bool:
    from torch import nn

    return inspect.isclass(found) and issubclass(found, nn.Module)


_current: ContextVar[Rule | None] = ContextVar("kdx_trust", default=None)


def current() -> Rule | None:
    """The rule for the text that is being built; None while no text is, but what Python code wrote itself."""
    return _current.get()


@contextmanager
def trusting(rule: Rule) -> Iterator[None]:
    """Holds what is built in its body to a rule, also where a component builds others that its options name."""
    token = _current.set(rule)
    try:
        yield
    finally:
        _current.reset(token)
