"""A component by name, with its options: the one way to write down what is not built yet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

__all__ = ["Ref", "RefLike"]


class Ref:
    """The name of a component and its options, as a recipe writes them: ``{name: convnet, width: 8}``.

    A reference is a value: it never changes, and two are equal if name and options are. Options are plain values as in
    a recipe: a tuple is kept as a list, a path as text, a reference among them as the mapping it dumps to.

    Args:
        name: of the component, as ``kdx list`` prints it.
        **options: of the component.

    Raises:
        TypeError: the name is no string.
        ValueError: an option is called ``name``, which is a key of its own in a recipe.

    Example:
        >>> net = Ref("convnet", width=8)
        >>> net.as_dict()
        {'name': 'convnet', 'width': 8}
        >>> Ref.of({"name": "convnet", "width": 8}) == net
        True
        >>> net.with_options(width=4, stages=2)
        Ref('convnet', width=4, stages=2)
    """

    __slots__ = ("_name", "_options")
    keys: ClassVar[tuple[str, ...]] = ("name",)
    """Keys of the mapping beside the options, which no option can be called."""

    def __init__(self, name: str, /, **options: Any) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a component is named by a string, got {name!r}")
        if "name" in options:
            raise ValueError(f"{name!r} cannot have an option 'name': in a recipe that is the component's own name")
        self._name = name
        self._options: dict[str, Any] = _plain(options)

    @classmethod
    def of(cls, value: RefLike, argument: str = "component") -> Self:
        """A reference from a name, from a mapping with ``name`` and options, or from a reference.

        Args:
            value: what it is made of.
            argument: how messages name it.

        Raises:
            TypeError: it is nothing of the kind.
            ValueError: the mapping has no ``name``.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(value)
        written = value.as_dict() if isinstance(value, Ref) else value
        if not isinstance(written, Mapping):
            raise TypeError(f"{argument}: expected a name, or {{name: ..., option: value}}, got {value!r}")
        if not isinstance(written.get("name"), str):
            raise ValueError(f"{argument}: expected {{name: ..., option: value}}, got {dict(written)}")
        options = dict(written)
        return cls(options.pop("name"), **options)

    @property
    def name(self) -> str:
        """Name of the component."""
        return self._name

    @property
    def options(self) -> dict[str, Any]:
        """The options given, as a copy."""
        copied: dict[str, Any] = _plain(self._options)
        return copied

    def as_dict(self) -> dict[str, Any]:
        """The mapping that a recipe writes."""
        return {"name": self.name, **self.options}

    def with_options(self, **options: Any) -> Self:
        """The same component with some options replaced or added."""
        return type(self).of(self.as_dict() | options)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash(_hashable(self.as_dict()))

    def __repr__(self) -> str:
        given = [f"{key}={value!r}" for key, value in self.as_dict().items() if key != "name"]
        return f"{type(self).__name__}({', '.join([repr(self.name), *given])})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).of, (self.as_dict(),)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A field of a pydantic model: validated from what :meth:`of` takes, dumped as the mapping."""
        from pydantic_core import core_schema  # `import kdx` stays fast

        keys = {
            name: core_schema.typed_dict_field(schema, required=False) for name, schema in cls._keys(handler).items()
        }
        mapping = core_schema.typed_dict_schema(
            {"name": core_schema.typed_dict_field(core_schema.str_schema()), **keys}, extra_behavior="allow"
        )
        return core_schema.no_info_before_validator_function(
            _written,
            core_schema.no_info_after_validator_function(cls.of, mapping),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda ref: ref.as_dict()),
        )

    @classmethod
    def _keys(cls, handler: GetCoreSchemaHandler) -> dict[str, CoreSchema]:
        """The keys of the mapping beside ``name`` that are no options, with what they may be."""
        return {}


RefLike = Ref | str | Mapping[str, Any]
"""The values that a reference can be made of: ``"SGD"``, ``{"name": "SGD", "lr": 0.1}`` or ``Ref("SGD", lr=0.1)``."""


def _written(value: Any) -> Any:
    """A name or a reference as the mapping that it stands for; everything else as it is."""
    if isinstance(value, Ref):
        return value.as_dict()
    return {"name": value} if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Ref):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _hashable(value: Any) -> Any:
    if isinstance(value, dict):
        return frozenset((key, _hashable(item)) for key, item in value.items())
    if isinstance(value, list):
        return tuple(_hashable(item) for item in value)
    return value
