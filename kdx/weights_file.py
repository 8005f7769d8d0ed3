"""Where weights come from: a local file or folder, and how its names become those of the model."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from kdx.errors import CheckpointError

__all__ = ["WeightsFile"]


class WeightsFile(BaseModel):
    """A file of weights with the map from its names to the model's; in a recipe a path, or a mapping with these keys.

    The map is applied in this order: ``entry``, ``prefix``, ``rename``, ``skip``. A beginning of a name is whole parts
    between dots: ``layer1`` begins ``layer1.conv.weight`` and not ``layer10.weight``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Path = Field(description="safetensors, a state dict of torch.save, or a Hugging Face folder")
    entry: str | None = Field(None, description="key of a checkpoint that holds the state dict, as state_dict_ema")
    prefix: str = Field(
        "", description="beginning of the names that are meant, which is taken off, as 'module.'; others are left out"
    )
    rename: dict[str, str] = Field(
        {}, description="beginning of a name in the file -> what takes its place; '' adds one to every name"
    )
    skip: list[str] = Field(
        [], description="beginnings of names of the model that are left as they are, as [fc] for another classifier"
    )

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str | PathLike) else value

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> Any:
        values = handler(self)
        given = {name: each for name, each in values.items() if each not in (None, "", {}, [])}
        return given["file"] if len(given) == 1 else given

    @classmethod
    def of(cls, source: str | PathLike[str] | Mapping[str, Any] | WeightsFile) -> WeightsFile:
        """The source that a path, or a mapping as a recipe has it, stands for.

        Raises:
            CheckpointError: the mapping has no ``file``, or a key that there is not.
        """
        if isinstance(source, WeightsFile):
            return source
        if isinstance(source, Mapping) and (
            (wrong := sorted(source.keys() - cls.model_fields.keys())) or "file" not in source
        ):
            what = f"the key {wrong[0]!r}" if wrong else "no file"
            raise CheckpointError(
                f"weights: expected a path, or a mapping with file and any of entry, prefix, rename, skip; got {what}"
            )
        return cls.model_validate(source)

    def __str__(self) -> str:
        return str(self.file)
