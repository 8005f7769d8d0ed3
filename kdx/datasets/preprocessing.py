"""How the contents of a file become a model's inputs, as plain values that a trained student is kept with."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor

__all__ = ["Preprocessing", "preprocessing_of"]

_KINDS = {
    "image": "kdx.datasets.image_preprocessing:ImagePreprocessing",
    "table": "kdx.datasets.table_preprocessing:TablePreprocessing",
    "array": "kdx.datasets.array_preprocessing:ArrayPreprocessing",
}


class Preprocessing(BaseModel):
    """How files become inputs; a data set that has one offers it as its attribute ``preprocessing``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def read(self, file: Path) -> Iterator[tuple[str, Tensor]]:
        """The name and the input of everything in a file, one after the other.

        Raises:
            ValueError: the file holds nothing of the kind; it is named.
        """
        raise NotImplementedError

    def as_dict(self) -> dict[str, Any]:
        """Plain values, of which :func:`preprocessing_of` makes the same again."""
        return self.model_dump(mode="json")


def preprocessing_of(values: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing that :meth:`Preprocessing.as_dict` wrote down.

    Raises:
        ValueError: the values are none.
    """
    if values.get("kind") not in _KINDS:
        raise ValueError(f"expected a preprocessing of the kind {', '.join(_KINDS)}, got {dict(values)}")
    module, _, name = _KINDS[values["kind"]].partition(":")
    found: Preprocessing = getattr(importlib.import_module(module), name).model_validate(dict(values))
    return found
