"""The description of a derived student, from which it is built without its teacher."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, SerializeAsAny, ValidationError
from torch import nn

from kdx.errors import StudentError, TrustError, UnknownNameError
from kdx.files import atomic_write, read_text
from kdx.options import problems
from kdx.ref import Ref
from kdx.registry import default_plugins, imported
from kdx.students.edit import Edit
from kdx.trust import Rule, Trusted, current, trusting

__all__ = ["StudentConfig", "build", "check_targets", "parse_config", "read_config", "write_config"]


LARGEST = 1_000_000
"""Values that a file may have: several for each channel of a wide network."""


class StudentConfig(BaseModel):
    """How a derived student is built: a model, then changes of its structure.

    Args:
        base: what the teacher was built from: ``name`` of a model of kdx or a plugin, or ``target`` as
            ``package.module:callable``; every further key is an option of it.
        shape: ``num_classes`` and ``input_shape`` that it was built for.
        edits: the changes, in order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: dict[str, Any]
    shape: dict[str, Any] = {}
    edits: list[SerializeAsAny[Edit]]


def read_config(
    config: str | Path | Mapping[str, Any] | StudentConfig, *, trust: Trusted | None = None
) -> StudentConfig:
    """A checked config, from a YAML or JSON file or plain values.

    Args:
        config: a path is a text, which names models of kdx and the plugins alone; values are the caller's own word.
        trust: modules that a text may name beside those, as ``"my_models"``; see :mod:`kdx.trust`.

    Raises:
        StudentError: no such file, or a wrong key or value; its place is named.
        TrustError: the file names a module that is not trusted.
    """
    if isinstance(config, StudentConfig):
        return config
    if (rule := _rule_for(config, trust)) is not None:
        values, where = _values(config)
        check_targets(values, where, rule)
    return parse_config(config)


def parse_config(config: str | Path | Mapping[str, Any] | StudentConfig) -> StudentConfig:
    """A config whose base is not to be built: its keys and values are checked, what it names is not looked at.

    Raises:
        StudentError: see :func:`read_config`.
    """
    if isinstance(config, StudentConfig):
        return config
    values, where = _values(config)
    try:
        if isinstance(values, Mapping) and isinstance(values.get("edits"), Sequence):
            values = {**values, "edits": [_edit(where, place, edit) for place, edit in enumerate(values["edits"])]}
        found = StudentConfig.model_validate(values)
    except ValidationError as error:
        raise StudentError(f"{where}: " + "; ".join(problems(error))) from error
    if len({"name", "target"} & found.base.keys()) != 1:
        raise StudentError(f"{where}: base must have a name (of a model) or a target (package.module:callable)")
    return found


def _rule_for(config: str | Path | Mapping[str, Any] | StudentConfig, trust: Trusted | None) -> Rule | None:
    """The rule for what a config names; None where Python code wrote it."""
    if trust is not None:
        return Rule.of(trust)
    if (rule := current()) is not None:
        return rule
    return Rule.of() if isinstance(config, str | Path) else None


def _values(config: str | Path | Mapping[str, Any]) -> tuple[Any, str]:
    """The values of a config, and how messages name it."""
    if isinstance(config, Mapping):
        return config, "student config"
    return _read(Path(config)), f"student config {config}"


def _read(path: Path) -> Any:
    """The values in a YAML or JSON file."""
    try:
        text = read_text(path, "student config")
        tree = yaml.compose(text, yaml.SafeLoader)  # JSON is YAML
        if tree is not None and (size := _size(tree, {})) > LARGEST:
            long = "no end" if size == math.inf else f"{size:.0e} values"
            raise StudentError(
                f"student config {path} cannot be read: with what it repeats by reference (& and *) it has {long}, and "
                f"{LARGEST:,} are allowed; write out what is meant"
            )
        return yaml.safe_load(text)
    except RecursionError:
        raise StudentError(f"student config {path} cannot be read: it is nested too deeply") from None
    except (OSError, yaml.YAMLError) as error:
        raise StudentError(f"student config {path} cannot be read: {error}") from error


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """The number of values in a YAML tree, what is referred to counted wherever it is; infinite within itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        below = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        parts = [] if isinstance(node, yaml.ScalarNode) else below
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def check_targets(values: Any, where: str, rule: Rule) -> None:
    """Checks the ``base.target`` of every config in plain values, also of those in files that they name.

    Args:
        values: those of a config, or a recipe's, in which configs are options of models ``derived`` at any depth.
        where: how messages name the place of the values.
        rule: what may be named.

    Raises:
        TrustError: a target is not trusted; its place is named.
        StudentError: a target is not there, or a file of a config cannot be read.
    """

    def check(value: Any, path: str, within: tuple[Path, ...]) -> None:
        if isinstance(value, Mapping):
            base, config = value.get("base"), value.get("config")
            if isinstance(base, Mapping) and "target" in base:
                _find(base["target"], f"{path}.base.target", rule)
            if value.get("name") == "derived" and isinstance(config, str | Path):
                file = Path(config).absolute()
                if file in within:
                    raise StudentError(f"{path}.config: {config} names itself; name what it is built from")
                check(_read(file), f"{path}.config ({config})", (*within, file))
            for key, item in value.items():
                check(item, f"{path}.{key}" if path else str(key), within)
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            for place, item in enumerate(value):
                check(item, f"{path}.{place}", within)

    check(values, where, ())


def _edit(where: str, place: int, value: Any) -> Any:
    """An edit, of the class that the derivation it names has."""
    if not isinstance(value, Mapping):
        return value
    how = value.get("how")
    try:
        kind: type[Edit] = default_plugins().load("student", str(how)).edit
        return kind.model_validate(value)
    except UnknownNameError as error:
        raise StudentError(f"{where}: edits.{place}.how: {error}") from error
    except ValidationError as error:
        raise StudentError(
            f"{where}: " + "; ".join(f"edits.{place}.{how}.{line}" for line in problems(error))
        ) from error


def write_config(config: StudentConfig, path: Path) -> None:
    """Writes a config atomically, as JSON if the name ends so, else as YAML."""
    values = config.model_dump(mode="json")
    text = (
        json.dumps(values, indent=2)
        if path.suffix == ".json"
        else yaml.safe_dump(values, sort_keys=False, default_flow_style=None)
    )
    atomic_write(path, lambda temporary: temporary.write_text(text if text.endswith("\n") else text + "\n"))


def build(
    config: str | Path | Mapping[str, Any] | StudentConfig, *, trust: Trusted | None = None, **shape: Any
) -> nn.Module:
    """Builds a derived student; its weights are drawn anew.

    Args:
        config: see :func:`read_config`.
        trust: see :func:`read_config`.
        **shape: ``num_classes``, ``input_shape``, in the place of those in the config.

    Raises:
        StudentError: the config is wrong, or its base is not what it was.
        TrustError: the config comes from a file and names a module that is not trusted.
    """
    rule = _rule_for(config, trust)
    found = read_config(config, trust=trust)
    with nullcontext() if rule is None else trusting(rule):  # the base may be built of other configs
        model = _base(found, {**found.shape, **shape}, rule)
    if not isinstance(model, nn.Module):
        raise StudentError(f"the base of a student must give a torch.nn.Module, got {type(model).__name__}")
    for edit in found.edits:
        edit.build(model)
    return model


def _base(config: StudentConfig, shape: Mapping[str, Any], rule: Rule | None) -> Any:
    options = dict(config.base)
    if "name" in options:
        return default_plugins().make("model", Ref.of(options), **shape)
    target = _find(options.pop("target"), "base.target", rule)
    takes = inspect.signature(target).parameters
    return target(**options, **{name: value for name, value in shape.items() if name in takes})


def _find(target: Any, where: str, rule: Rule | None) -> Any:
    try:
        return imported(str(target)) if rule is None else rule.find(str(target), where)
    except TrustError:
        raise
    except (ImportError, AttributeError, ValueError) as error:
        raise StudentError(
            f"{where} must be package.module:callable that can be imported; got {target!r} ({error})"
        ) from error
