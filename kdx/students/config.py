"""The description of a derived student, from which it is built without its teacher."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, SerializeAsAny, ValidationError
from torch import nn

from kdx.errors import StudentError, UnknownNameError
from kdx.files import atomic_write
from kdx.options import problems
from kdx.ref import Ref
from kdx.registry import default_plugins
from kdx.students.edit import Edit

__all__ = ["StudentConfig", "build", "read_config", "write_config"]


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


def read_config(config: str | Path | Mapping[str, Any] | StudentConfig) -> StudentConfig:
    """A checked config, from a YAML or JSON file or plain values.

    Raises:
        StudentError: no such file, or a wrong key or value; its place is named.
    """
    if isinstance(config, StudentConfig):
        return config
    where, values = "student config", config
    if not isinstance(config, Mapping):
        where = f"student config {config}"
        try:
            values = yaml.safe_load(Path(config).read_text())  # JSON is YAML
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise StudentError(f"{where} cannot be read: {error}") from error
    try:
        if isinstance(values, Mapping) and isinstance(values.get("edits"), Sequence):
            values = {**values, "edits": [_edit(where, place, edit) for place, edit in enumerate(values["edits"])]}
        found = StudentConfig.model_validate(values)
    except ValidationError as error:
        raise StudentError(f"{where}: " + "; ".join(problems(error))) from error
    if len({"name", "target"} & found.base.keys()) != 1:
        raise StudentError(f"{where}: base must have a name (of a model) or a target (package.module:callable)")
    return found


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


def build(config: str | Path | Mapping[str, Any] | StudentConfig, **shape: Any) -> nn.Module:
    """Builds a derived student; its weights are drawn anew.

    Args:
        config: see :func:`read_config`.
        **shape: ``num_classes``, ``input_shape``, in the place of those in the config.

    Raises:
        StudentError: the config is wrong, or its base is not what it was.
    """
    found = read_config(config)
    options = dict(found.base)
    shape = {**found.shape, **shape}
    if "name" in options:
        model: nn.Module = default_plugins().make("model", Ref.of(options), **shape)
    else:
        target = _load(options.pop("target"))
        takes = inspect.signature(target).parameters
        model = target(**options, **{name: value for name, value in shape.items() if name in takes})
    if not isinstance(model, nn.Module):
        raise StudentError(f"the base of a student must give a torch.nn.Module, got {type(model).__name__}")
    for edit in found.edits:
        edit.build(model)
    return model


def _load(target: str) -> Any:
    module, _, attribute = str(target).partition(":")
    try:
        return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise StudentError(
            f"base.target must be package.module:callable that can be imported; got {target!r} ({error})"
        ) from error
