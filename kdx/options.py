"""The options of a component: read from its signature and docstring, checked by pydantic."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import docstring_parser
from pydantic import ConfigDict, ValidationError, create_model

from kdx.errors import PluginError, RecipeError, nearest
from kdx.tap import Tap

__all__ = ["Option", "check_options", "check_takes", "options_of", "problems"]

_REQUIRED = object()


@dataclass(frozen=True, slots=True)
class Option:
    """One keyword option of a component.

    Args:
        name: as written in a recipe.
        type: its annotation.
        default: its default, meaningless if ``required``.
        required: whether it has no default.
        doc: its line in the docstring.
    """

    name: str
    type: Any
    default: Any
    required: bool
    doc: str

    @property
    def type_name(self) -> str:
        """The annotation as a reader writes it."""
        shown = inspect.formatannotation(self.type)
        for module in ("typing.", "collections.abc.", "kdx.tap."):
            shown = shown.replace(module, "")
        return shown

    @property
    def default_name(self) -> str | None:
        """The default's name, if it is a class or a function."""
        named = inspect.isclass(self.default) or inspect.isroutine(self.default)
        return self.default.__name__ if named else None


def options_of(target: Callable[..., Any]) -> list[Option]:
    """The options of a class or function, in the order of its signature.

    Raises:
        PluginError: an annotation names what cannot be found.
    """
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(function)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise PluginError(
            f"{getattr(target, '__qualname__', target)} of {target.__module__}: its annotations cannot be read: "
            f"{type(error).__name__}: {error}; import what they name, and not under TYPE_CHECKING alone"
        ) from error
    docs = _docs(target)
    found: list[Option] = []
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            found += _unpacked(hints.get(name))
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        required = parameter.default is parameter.empty
        default = _REQUIRED if required else parameter.default
        found.append(Option(name, hints.get(name, Any), default, required, docs.get(name, "")))
    return found


def _unpacked(hint: Any) -> list[Option]:
    """The options that ``**options: Unpack[SomeTypedDict]`` takes, None where they are not given."""
    packed = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Unpack else None
    if packed is None:
        return []
    docs = _docs(packed)
    return [
        Option(name, type_, None, False, docs.get(name, "")) for name, type_ in typing.get_type_hints(packed).items()
    ]


def _docs(target: Any) -> dict[str, str]:
    """Argument -> its line in the docstring."""
    parsed = docstring_parser.parse(inspect.getdoc(target) or "")
    return {item.arg_name: " ".join((item.description or "").split()) for item in parsed.params}


def _with_taps(what: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options whose mappings with the key ``tap`` have become taps."""

    def of(name: str, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(of(name, item) for item in value) if any(map(_is_tap, value)) else value
        try:
            return Tap.of(value) if _is_tap(value) else value
        except ValueError as error:
            raise RecipeError(f"{what}.{name}: {error}") from error

    return {name: of(name, value) for name, value in options.items()}


def _is_tap(value: Any) -> bool:
    return isinstance(value, Mapping) and "tap" in value


def check_options(
    what: str, target: Callable[..., Any], options: Mapping[str, Any], *, supplied: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Checks options against a component's signature and converts them: lists to tuples, numbers to floats, and
    mappings with the key ``tap`` to :class:`kdx.Tap`.

    Args:
        what: how messages name the component, as ``"knowledge.kd (soft-targets)"``.
        target: the component.
        options: what the recipe gives.
        supplied: parameters that kdx fills in itself and a recipe must not give.

    Returns:
        The converted options; those that were not given are left out.

    Raises:
        RecipeError: an unknown option (with the nearest name) or a value of the wrong type.
    """
    known = {option.name: option for option in options_of(target) if option.name not in supplied}
    if unknown := [name for name in options if name not in known]:
        raise RecipeError(f"{what}: unknown option {unknown[0]!r}; {nearest(unknown[0], known)}")
    fields: dict[str, Any] = {
        option.name: (option.type, ... if option.required else option.default) for option in known.values()
    }
    config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())
    checked = create_model("Options", __config__=config, **fields)
    try:
        values = checked.model_validate(_with_taps(what, options))
    except ValidationError as error:
        raise RecipeError("; ".join(f"{what}.{line}" for line in problems(error))) from error
    return {name: getattr(values, name) for name in options}


def check_takes(what: str, target: Callable[..., Any], given: Iterable[str]) -> None:
    """Checks that a component has the parameters that kdx fills in itself.

    Raises:
        RecipeError: one is missing; the message begins with ``what``.
    """
    parameters = inspect.signature(target).parameters
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    kwargs = [name for name, parameter in parameters.items() if parameter.kind is parameter.VAR_KEYWORD]
    if any(not _unpacked(hints.get(name)) for name in kwargs):
        return
    if missing := sorted(set(given) - parameters.keys()):
        known = ", ".join(parameters) or "none"
        raise RecipeError(f"{what}: it has to take {missing[0]}, which kdx gives; its parameters are {known}")


def problems(error: ValidationError) -> list[str]:
    """One line per problem: path to the key, what was expected and what came."""
    lines = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "missing":
            lines.append(f"{path}: is required and was not given")
        else:
            message = item["msg"][:1].lower() + item["msg"][1:]
            lines.append(f"{path}: {message.removeprefix('value error, ')}, got {item['input']!r}")
    return lines
