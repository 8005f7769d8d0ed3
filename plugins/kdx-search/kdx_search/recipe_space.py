"""The space of a search: a recipe's keys, some of whose values are ranges or choices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdx.errors import RecipeError

__all__ = ["Choice", "Pick", "Range", "RecipeSpace", "Spec"]

FIXED = {
    "data": "all trials are judged on the same rows",
    "seed": "all trials share the split, the first weights' seed and the order of the rows",
    "controls": "trials have none; the chosen student has those of the recipe",
    "device": "all trials run in the same place",
    "threads": "all trials run in the same way",
    "summary": "it is a text",
    "train.epochs": "all trials train for search.epochs, and the chosen student for train.epochs",
    "train.steps": "all trials train for search.steps, and the chosen student for train.steps",
    "task.name": "all trials are judged by one metric",
}
"""Keys that a search does not change, with the reason."""


@dataclass(frozen=True, slots=True)
class Range:
    """A number between two others, both included; a whole number if ``low``, ``high`` and ``step`` are whole.

    Args:
        low: the smallest.
        high: the largest, above ``low``.
        step: distance between neighbours from ``low`` on; None: 1 of whole numbers, none of others.
        log: whether ratios count and not differences, as they do for weights and temperatures.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return all(isinstance(each, int) for each in (self.low, self.high, self.step or 1))

    def holds(self, value: Any) -> bool:
        """Whether a value is one of its own."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        if not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-6


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several values, each with a label; a value may have ranges and choices within.

    Args:
        options: label -> value.
    """

    options: dict[str, Any]

    def holds(self, value: Any) -> bool:
        """Whether a value is the label of one of its options."""
        return isinstance(value, str) and value in self.options


Spec = Range | Choice
"""One dimension of a space."""

Pick = Callable[[str, Spec], Any]
"""Gives the value of a dimension by its name: a number of a :class:`Range`, a label of a :class:`Choice`."""


class RecipeSpace:
    """The recipe's keys that a search changes, and what they may be.

    ``{"student.model.width": {"low": 4, "high": 16}, "knowledge.kd": {"choices": [...]}}``: keys dotted or nested, as
    overrides of a recipe are. ``{low, high, step, log}`` is a :class:`Range`, ``{choices: ...}`` a :class:`Choice`:
    a list of texts, numbers, null and components, or a mapping from a label to a value. Ranges and choices may stand
    anywhere within a value, and those within an option are there only while the option is taken. Everything else is
    fixed. A dimension is named by its key, with the labels of the options that it lies in, as
    ``knowledge.kd[soft-targets].temperature``.

    Args:
        written: as above, plain values.

    Raises:
        RecipeError: no dimension, a wrong range or choice, or a key that no search may change; the key is named.

    Example:
        >>> space = RecipeSpace({"student.model": {"name": "mlp", "width": {"low": 4, "high": 8}}})
        >>> space.overrides({"student.model.width": 6})
        {'student.model': {'name': 'mlp', 'width': 6}}
        >>> list(space.dimensions())
        ['student.model.width']
    """

    def __init__(self, written: Mapping[str, Any]) -> None:
        if not isinstance(written, Mapping):
            raise RecipeError(
                f"search.space: expected keys of the recipe with what they may be, as student.model.width: "
                f"{{low: 4, high: 16}}; got {type(written).__name__}"
            )
        self.written = dict(written)
        self._values = {key: _parsed(value, key) for key, value in self.written.items()}
        for key in _keys(self.written):
            for fixed, why in FIXED.items():
                if key == fixed or key.startswith(f"{fixed}.") or fixed.startswith(f"{key}."):
                    raise RecipeError(f"search.space.{key}: a search does not change {fixed}: {why}; remove it")
        if not self.dimensions():
            raise RecipeError(
                "search.space: nothing in it is a range or a choice, so there is nothing to search; write "
                "{low: ..., high: ...} or {choices: [...]} for a value"
            )

    def dimensions(self) -> dict[str, Spec]:
        """Name -> range or choice of every dimension, those within options too, in the order of the space."""
        found: dict[str, Spec] = {}
        for key, value in self._values.items():
            _collect(value, key, found)
        return found

    def overrides(self, values: Mapping[str, Any] | Pick) -> dict[str, Any]:
        """The overrides of the recipe at one point of the space.

        Args:
            values: of its dimensions by name, or a function that is asked for those that are there at this point.

        Raises:
            RecipeError: a value is missing, or none of those that its dimension has.
        """

        def given(name: str, spec: Spec) -> Any:
            value = values(name, spec) if callable(values) else values.get(name)
            if not spec.holds(value):
                raise RecipeError(f"search.space: {name} is {value!r} and must be {_shown(spec)}")
            return value

        return {key: _resolved(value, key, given) for key, value in self._values.items()}

    def point(self, pick: Pick) -> dict[str, Any]:
        """The values of the dimensions that are there when each is picked in turn."""
        found: dict[str, Any] = {}

        def kept(name: str, spec: Spec) -> Any:
            found[name] = pick(name, spec)
            return found[name]

        self.overrides(kept)
        return found

    def first(self) -> dict[str, Any]:
        """The point with the lowest number of every range and the first option of every choice."""
        return self.point(lambda name, spec: ends(spec)[0])

    def probes(self) -> Iterator[dict[str, Any]]:
        """Points at which every option of every choice and both ends of every range occur, the others being first."""
        first = self.first()
        yield first
        pending, seen = [first], {tuple(first.items())}
        for base in pending:  # grows: an option has dimensions of its own
            for name in base:
                for value in ends(self.dimensions()[name]):
                    point = self.moved(base, name, value)
                    if value != base[name] and (key := tuple(point.items())) not in seen:
                        new = set(point) - set(base)
                        seen.add(key)
                        yield point
                        if new:
                            pending.append(point)

    def moved(self, base: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
        """Another point, one dimension changed; dimensions that are new there have their first value."""
        return self.point(lambda each, spec: value if each == name else base.get(each, ends(spec)[0]))


def ends(spec: Spec) -> list[Any]:
    """Both ends of a range, all labels of a choice."""
    if isinstance(spec, Choice):
        return list(spec.options)
    high = spec.high
    if spec.step:
        high = spec.low + math.floor((spec.high - spec.low) / spec.step + 1e-9) * spec.step
    return [spec.low, high]


def _parsed(value: Any, path: str) -> Any:
    """A value with its ranges and choices in place."""
    if isinstance(value, Mapping):
        keys = set(value)
        if {"low", "high"} <= keys <= {"low", "high", "step", "log"}:
            return _range(value, path)
        if keys == {"choices"}:
            return _choice(value["choices"], path)
        if keys & {"low", "high"} == keys or "choices" in keys:
            raise RecipeError(
                f"search.space.{path}: expected {{low, high, step, log}}, of which the first two are needed, or "
                f"{{choices}} alone; got {dict(value)}"
            )
        return {key: _parsed(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_parsed(item, f"{path}.{place}") for place, item in enumerate(value)]
    return value


def _range(value: Mapping[str, Any], path: str) -> Range:
    where = f"search.space.{path}"
    for key in ("low", "high", "step"):
        number = value.get(key)
        right = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        if not right and not (key == "step" and number is None):
            raise RecipeError(f"{where}.{key}: expected a number, got {number!r}")
    low, high, step, log = value["low"], value["high"], value.get("step"), value.get("log", False)
    if not isinstance(log, bool):
        raise RecipeError(f"{where}.log: expected true or false, got {log!r}")
    if low >= high:
        raise RecipeError(f"{where}: low must be below high, got {low} and {high}; a single value is written as itself")
    if step is not None and not 0 < step <= high - low:
        raise RecipeError(f"{where}.step: expected a number above 0 and at most high - low, got {step}")
    if log and low <= 0:
        raise RecipeError(f"{where}: with log: true low must be above 0, got {low}")
    if log and step is not None:
        raise RecipeError(f"{where}: steps and log: true do not go together; remove one of them")
    return Range(low, high, step, log)


def _choice(value: Any, path: str) -> Choice:
    where = f"search.space.{path}.choices"
    if isinstance(value, Mapping):
        options = {str(label): item for label, item in value.items()}
    elif isinstance(value, list | tuple):
        options = {}
        for item in value:
            if (label := _label(item)) is None:
                raise RecipeError(
                    f"{where}: {item!r} has no name to call it by; write a mapping, choices: {{a_label: ...}}"
                )
            if label in options:
                raise RecipeError(
                    f"{where}: two options are called {label!r}; write a mapping, choices: {{one: ..., other: ...}}"
                )
            options[label] = item
    else:
        raise RecipeError(f"{where}: expected a list, or a mapping from labels to values, got {value!r}")
    if len(options) < 2:
        raise RecipeError(f"{where}: expected two options at least, got {len(options)}; one value is written as itself")
    return Choice({label: _parsed(item, f"{path}[{label}]") for label, item in options.items()})


def _label(item: Any) -> str | None:
    if isinstance(item, Mapping):
        return item["name"] if isinstance(item.get("name"), str) else None
    if isinstance(item, list | tuple):
        return None
    return "null" if item is None else str(item).lower() if isinstance(item, bool) else str(item)


def _resolved(value: Any, path: str, pick: Pick) -> Any:
    if isinstance(value, Range):
        return pick(path, value)
    if isinstance(value, Choice):
        label = pick(path, value)
        return _resolved(value.options[label], f"{path}[{label}]", pick)
    if isinstance(value, dict):
        return {key: _resolved(item, f"{path}.{key}", pick) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, f"{path}.{place}", pick) for place, item in enumerate(value)]
    return value


def _collect(value: Any, path: str, found: dict[str, Spec]) -> None:
    if isinstance(value, Range | Choice):
        found[path] = value
    for key, item in _below(value, path):
        _collect(item, key, found)


def _below(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, Choice):
        return [(f"{path}[{label}]", item) for label, item in value.options.items()]
    if isinstance(value, dict):
        return [(f"{path}.{key}", item) for key, item in value.items()]
    return [(f"{path}.{place}", item) for place, item in enumerate(value)] if isinstance(value, list) else []


def _keys(written: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The dotted keys of the recipe that a space changes; a component changes as a whole, any other mapping by key."""
    for key, item in written.items():
        place = f"{path}.{key}" if path else str(key)
        options = [item]
        if isinstance(item, Mapping) and set(item) == {"choices"}:
            options = list(item["choices"].values() if isinstance(item["choices"], Mapping) else item["choices"])
        for option in options:
            if isinstance(option, Mapping) and option and not {"name", "low"} & set(option):
                yield from _keys(option, place)
            else:
                yield place


def _shown(spec: Spec) -> str:
    if isinstance(spec, Choice):
        return f"one of {', '.join(spec.options)}"
    step = f" in steps of {spec.step}" if spec.step else ""
    return f"{'a whole number' if spec.whole else 'a number'} from {spec.low} to {spec.high}{step}"
