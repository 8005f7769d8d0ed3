"""Every component in the Fashion-MNIST recipe, two epochs of a small student: it runs, is logged, leaves no trace."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import kdx
from kdx.experiment.recipe_files import check_recipe, load_recipe
from kdx.features.matching import pair_by_depth
from kdx.models import ConvNet
from kdx.registry import Plugins

LAYERS = {"student": ["stage1", "stage2"], "teacher": ["stage1", "stage2"]}
BEFORE_RELU = {"student": ["stage1.norm1", "stage2.norm1"], "teacher": ["stage1.norm1", "stage2.norm1"]}
EMBEDDING = {"student": "avgpool", "teacher": "avgpool"}
OPTIONS = {
    "soft-targets": {},
    "logits": {"weight": 0.1},
    "hard-targets": {},
    "dkd": {"beta": 2.0},
    "nkd": {},
    "ctkd": {"per": "sample", "epochs": 2},
    "mlld": {"temperatures": [2.0, 4.0]},
    "logit-standardisation": {"around": {"name": "soft-targets", "temperature": 2.0}},
    "dist": {},
    "reverse-kl": {},
    "jsd": {},
    "skew-kl": {"direction": "reverse"},
    "adaptive-kl": {},
    "alpha-beta": {},
    "rkd": EMBEDDING,
    "sp": LAYERS | {"weight": 100.0},
    "pkt": EMBEDDING | {"weight": 1e3},
    "cc": EMBEDDING,
    "irg": LAYERS | {"transform": "edge"},
    "fsp": LAYERS,
    "hint": LAYERS,
    "attention-transfer": LAYERS | {"weight": 100.0},
    "nst": LAYERS,
    "cwd": LAYERS,
    "hidden-states": LAYERS | {"shared": False},
    "cosine": LAYERS | {"shared": False},
    "vid": LAYERS | {"weight": 0.1},
    "ofd": LAYERS | {"weight": 1e-3},
    "ofa": {"student": ["stage1", "stage2", "logits"], "gamma": 1.5},
    "ab": BEFORE_RELU | {"weight": 3e-3},
    "ft": {"student": "stage2", "teacher": "stage2"},
    "review-kd": LAYERS,
    "crd": EMBEDDING | {"negatives": 64, "labels": "data"},
    "semckd": LAYERS,
}
"""Component -> its options in the recipe; the weight is 1 where none is given."""

SHORT = {
    "data.validation": 494,  # leaves 256 training images
    "data.labelled": 120,
    "teacher.model.width": 4,
    "student.model.width": 2,
    "controls": [],
    "train.epochs": 2,
    "train.schedule.max_lr": 0.02,
    "threads": 1,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A teacher's weights; untrained, since nothing here depends on what it knows."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(ConvNet(width=4).state_dict(), path)
    return path


@pytest.fixture
def train(fashion_folder: Path, weights: Path, tmp_path: Path) -> Callable[..., Path]:
    """``train(term, **changes)`` -> the folder of the distilled student of a run with this knowledge."""
    paths = {"teacher.weights": str(weights), "data.dataset": {"name": "fashion-mnist", "root": str(fashion_folder)}}

    def run(term: dict[str, Any], observers: Sequence[object] = (), **changes: object) -> Path:
        shipped = load_recipe("fashion-offline", SHORT | paths | changes)
        recipe = check_recipe(shipped.dump() | {"knowledge": {"kd": term}})
        kdx.run(recipe, folder=tmp_path / "run", observers=observers, report=False)  # a third of the time, tested apart
        folder = tmp_path / "run" / "distilled"
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        logged = [line["term/kd"] for line in lines if "term/kd" in line]
        assert logged
        assert all(math.isfinite(value) for value in logged)
        return folder

    return run


@pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")
@pytest.mark.parametrize("name", OPTIONS)
def test_it_trains_a_student_for_two_epochs(name: str, train: Callable[..., Path]) -> None:
    folder = train({"name": name, **OPTIONS[name]})
    exported = load_file(folder / "student.safetensors")
    assert exported.keys() == ConvNet(width=2, stages=2, grid=7).state_dict().keys()


@pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")
@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("explicit", [(0, 0), (1, 1)]),
        ("uniform", [(0, 1), (1, 3)]),
        ("relative", [(0, 0), (1, 3)]),
        ("reverse", [(0, 3), (1, 0)]),
        ("random", pair_by_depth("random", 2, 4, seed=7)),
        ("cka", None),
        ("cka-unbiased", None),
        ("rsa", None),
        ("attention", [(student, teacher) for student in range(2) for teacher in range(4)]),
    ],
)
def test_a_recipe_chooses_how_layers_are_paired(
    strategy: str, expected: list[tuple[int, int]] | None, train: Callable[..., Path]
) -> None:
    class Look:
        @kdx.hookimpl
        def kdx_run_end(self, run) -> None:
            self.component = run.scheme.components["kd"]

    stages = {"student": ["stage*"], "teacher": ["stage1", "stage2"] if strategy == "explicit" else ["stage*"]}
    term = {"name": "hint", "pairing": strategy, "seed": 7} if strategy != "attention" else {"name": "semckd"}
    look = Look()
    train(term | stages, [look], **{"train.epochs": 1})
    if strategy == "attention":
        assert len(look.component.adapters) == len(expected)
    elif expected is None:
        assert [student for student, _ in look.component.pairs] == [0, 1]
        assert {teacher for _, teacher in look.component.pairs} <= {0, 1, 2, 3}
        assert look.component.chosen.tolist() == [list(pair) for pair in look.component.pairs]
    else:
        assert look.component.pairs == expected


def test_no_component_is_left_out() -> None:
    # simkd needs a scheme of its own, see tests/schemes; some compare outputs of other tasks than classes, and others
    # the attention of transformers, see test_tokens.py, or texts in two tokenisations, see test_two_tokenizers.py
    alone = {"simkd", "sigmoid-targets", "gaussian-kl", "margin-mse", "attention-scores", "minilm", "alm", "uld"}
    own = Plugins(entries=(), blocked=(), trace=False)
    assert OPTIONS.keys() | alone == own.components("knowledge").keys()
