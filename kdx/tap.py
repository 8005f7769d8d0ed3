"""Taps with options: a name, and what is known of the tensor there."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from kdx.errors import nearest
from kdx.layout import Axes, check_axes, check_grid, check_number

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

__all__ = ["Tap", "TapName", "TapNames", "TapOptions", "Told", "tap_of", "taps_of"]


class TapOptions(TypedDict, total=False):
    """Options that say how the features are laid out that a component reads; see :class:`kdx.layout.Layout`.

    Args:
        layout: the axes of features whose module does not say them, as ``"nhwc"``; a tap's own option goes before it.
        grid: rows and columns that tokens lie on, as ``(9, 16)``.
        class_token: number of class tokens before the grid; 0 for none.
        registers: number of register tokens between the class tokens and the grid.
    """

    layout: Axes | None
    grid: tuple[int, ...] | None
    class_token: int | None
    registers: int | None


@dataclass(frozen=True)
class Told:
    """The layout of a tensor as far as a user said it; None where nothing was said. See :class:`TapOptions`.

    Raises:
        ValueError: axes that do not exist, or numbers out of range.
    """

    layout: Axes | None = None
    grid: tuple[int, ...] | None = None
    class_token: int | None = None
    registers: int | None = None

    def __post_init__(self) -> None:
        if self.layout is not None:
            check_axes(self.layout)
        if self.grid is not None:
            object.__setattr__(self, "grid", check_grid(self.grid))
        check_number("class_token", self.class_token)
        check_number("registers", self.registers)

    @classmethod
    def of(cls, options: Mapping[str, Any], owner: type) -> Told:
        """Reads a component's keyword options.

        Raises:
            TypeError: an option that the component does not have.
        """
        own = [name for name in inspect.signature(owner).parameters if name not in ("args", "features")]
        known = dict.fromkeys([*own, *TapOptions.__annotations__])
        if unknown := [name for name in options if name not in TapOptions.__annotations__]:
            raise TypeError(f"{owner.__name__} has no option {unknown[0]!r}; {nearest(unknown[0], known)}")
        return cls(**options)

    @property
    def given(self) -> dict[str, Any]:
        """The options that were given, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


class Tap(str):
    """The name of a tap together with what is known of the tensor there; it is a ``str`` and serves wherever one does.

    In a recipe it is a mapping: ``{tap: blocks.3, grid: [9, 16], class_token: 1}``.

    Args:
        name: see :class:`kdx.Taps`.
        layout: what the axes mean, as ``"nhwc"``, where the module that gives the tensor does not say.
        grid: rows and columns that tokens lie on.
        class_token: number of class tokens before the grid; 0 for none.
        registers: number of register tokens between the class tokens and the grid.

    Raises:
        ValueError: axes that do not exist, or numbers out of range.

    Example:
        >>> tap = Tap("blocks.3", grid=(9, 16), class_token=1)
        >>> tap == "blocks.3", tap.told.grid
        (True, (9, 16))
    """

    told: Told

    def __new__(
        cls,
        name: str,
        *,
        layout: Axes | None = None,
        grid: tuple[int, ...] | None = None,
        class_token: int | None = None,
        registers: int | None = None,
    ) -> Tap:
        """See the class."""
        tap = super().__new__(cls, name)
        tap.told = Told(layout, grid, class_token, registers)
        return tap

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]:
        return (str(self),), self.told.given

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.told.given.items())
        return f"Tap({str(self)!r}{options})"

    @classmethod
    def of(cls, value: Tap | str | Mapping[str, Any]) -> Tap:
        """A tap as it is, of a name, or of the mapping that a recipe holds.

        Raises:
            ValueError: a mapping without ``tap`` or with another key.
        """
        if isinstance(value, Tap):
            return value
        if isinstance(value, str):
            return cls(value)
        options = dict(value)
        name = options.pop("tap", None)
        known = TapOptions.__annotations__
        if not isinstance(name, str) or (unknown := [key for key in options if key not in known]):
            wrong = "no name" if not isinstance(name, str) else f"the key {unknown[0]!r}"
            raise ValueError(
                f"expected a tap as {{tap: blocks.3, layout: nlc, grid: [9, 16]}}, whose keys are tap, "
                f"{', '.join(known)}; got {wrong} in {dict(value)}"
            )
        return cls(name, **options)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.is_instance_schema(cls)  # kdx.options makes taps of mappings before


TapName = Tap | str
"""One tap: its name, or the name with options."""

TapNames = Tap | str | tuple[Tap | str, ...]
"""One tap or several."""


def tap_of(value: TapName | Mapping[str, Any]) -> TapName:
    """One tap: a name or a tap as it is, or what a recipe writes, see :meth:`Tap.of`."""
    return value if isinstance(value, str) else Tap.of(value)


def taps_of(value: TapNames | Mapping[str, Any] | Iterable[TapName | Mapping[str, Any]]) -> tuple[TapName, ...]:
    """Taps of one or several, each as :func:`tap_of` takes it."""
    return (tap_of(value),) if isinstance(value, str | Mapping) else tuple(tap_of(item) for item in value)
