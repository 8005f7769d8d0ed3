"""A small search: perceptrons on digits, a trial takes a tenth of a second."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))  # search_nets.py, also where pytest imports by file

TINY = {
    "threads": 1,
    "data": {"dataset": {"name": "digits"}, "validation": 100},
    "teacher": {"model": {"name": "mlp", "hidden": [24, 16]}, "train": {"epochs": 2, "batch_size": 128}},
    "student": {"model": {"name": "mlp", "hidden": [8, 8]}},
    "knowledge": {"kd": {"name": "soft-targets"}},
    "train": {"epochs": 2, "batch_size": 128},
    "controls": [],
}
SPACE = {
    "student.model.hidden": [{"low": 4, "high": 32, "step": 4}, 8],
    "knowledge.kd": {
        "choices": [
            {"name": "soft-targets", "weight": 0.5, "temperature": {"low": 1.0, "high": 8.0, "log": True}},
            {"name": "dkd"},
        ]
    },
}


@pytest.fixture
def space() -> dict[str, Any]:
    """A space of eight widths and two kinds of transfer, one of which has a temperature."""
    return copy.deepcopy(SPACE)


@pytest.fixture
def tiny(space) -> Callable[..., dict[str, Any]]:
    """``tiny(other_space, trials=3)``: the recipe with a section search of three trials."""

    def made(other: Any = None, **search: Any) -> dict[str, Any]:
        section = {"trials": 3, "epochs": 1, "space": space if other is None else other, **search}
        return copy.deepcopy({**TINY, "search": section})

    return made
