"""The description that weights carry: all that it takes to build the model again and to use it, without its data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from kdx.errors import CheckpointError
from kdx.options import problems
from kdx.ref import Ref
from kdx.seal import read_metadata

__all__ = ["Description"]

KEY = "kdx.model"


class Description(BaseModel):
    """The description of a trained model.

    Args:
        recipe: name of the recipe that trained it.
        stage: name of its stage.
        model: what it is built from.
        shape: ``num_classes`` and ``input_shape`` that it is built for.
        facts: further options that came from the data set, as ``vocabulary``.
        task: what its outputs are for.
        classes: names of the classes or labels, if the data set has them.
        preprocessing: how files become its inputs, see :class:`kdx.datasets.Preprocessing`; None: the data set does not
            say.
        code: name -> copy in the run's folder of the Python files of its own that it is built from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str
    stage: str
    model: Ref
    shape: dict[str, Any]
    facts: dict[str, Any] = {}
    task: Ref
    classes: tuple[str, ...] | None = None
    preprocessing: dict[str, Any] | None = None
    code: dict[str, str] = {}

    def metadata(self) -> dict[str, str]:
        """The description as metadata of a safetensors file."""
        return {KEY: json.dumps(self.model_dump(mode="json"))}

    @classmethod
    def read(cls, weights: Path) -> Description:
        """The description in the metadata of a safetensors file.

        Raises:
            CheckpointError: it has none, or one of another version of kdx.
            FileError: the file cannot be read.
            DamagedError: it is no safetensors file.
        """
        found: Mapping[str, str] = read_metadata(weights)
        if KEY not in found:
            raise CheckpointError(
                f"{weights} does not say what model it is of: it was not written by a stage of kdx run. Build the "
                "model, and load it with kdx.training.load_weights"
            )
        try:
            return cls.model_validate_json(found[KEY])
        except ValidationError as error:
            raise CheckpointError(
                f"{weights} describes its model as another version of kdx does: {'; '.join(problems(error))}"
            ) from error
