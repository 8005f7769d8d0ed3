"""Public names of a package that are loaded when they are first used (PEP 562).

Importing a package of kdx imports neither torch nor the package's own modules. A package lists its names twice: in a
block under ``TYPE_CHECKING``, which type checkers and editors read, and in the table given to :func:`exports`, which
works at run time. A test holds the two against each other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["exports"]


def exports(
    package: str,
    names: Mapping[str, Iterable[str]],
    *,
    packages: Iterable[str] = (),
    own: Iterable[str] = (),
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Makes ``__getattr__``, ``__dir__`` and ``__all__`` of a package, in this order.

    A name is looked up in its module once and then kept in the package.

    Args:
        package: the package's ``__name__``.
        names: module -> the names that it defines.
        packages: packages below this one that are public themselves.
        own: public names that the package defines itself.

    Example:
        >>> _, listed, public = exports("kdx.teachers", {"kdx.teachers.ema": ["EMA"], "kdx.teachers.base": ["Teacher"]})
        >>> public
        ['EMA', 'Teacher']
    """
    homes = {name: module for module, defined in names.items() for name in defined}
    below = frozenset(packages)
    public = sorted({*homes, *below, *own})

    def load(name: str) -> Any:
        if name in below:
            return import_module(f"{package}.{name}")
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: list(public), public
