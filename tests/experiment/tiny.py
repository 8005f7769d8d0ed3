"""A small experiment: on digits with perceptrons a stage takes a tenth of a second."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from kdx.experiment.recipe_files import check_recipe
from kdx.ref import Ref

NET = Ref("mlp")
TINY = {
    "threads": 1,
    "data": {"dataset": {"name": "digits"}, "validation": 100},
    "teacher": {"model": {"name": "mlp", "hidden": [24, 16]}, "train": {"epochs": 1, "batch_size": 128}},
    "student": {"model": {"name": "mlp", "hidden": [8, 8]}},
    "knowledge": {"kd": {"name": "soft-targets"}},
    "train": {"epochs": 1, "batch_size": 128},
}


def recipe(**changes):
    return check_recipe({**TINY, **changes})


def weights(folder: Path, stage: str, name: str = "student") -> dict[str, torch.Tensor]:
    return load_file(folder / stage / f"{name}.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())
