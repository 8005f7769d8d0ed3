"""Schemes of single methods in the Fashion-MNIST recipe, two epochs of a small student."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import kdx
from kdx.experiment.recipe_files import check_recipe, load_recipe
from kdx.knowledge.ofd import OFD, batchnorm_margin
from kdx.models import ConvNet

SCHEMES = {
    "simkd": {
        "student_layer": "avgpool:input",
        "teacher_layer": "avgpool:input",
        "classifier": "fc",
        "student_classifier": "fc",
    },
    "hint-stage": {"student_layer": "stage1", "teacher_layer": "stage2"},
    "boundary-stage": {"student_layers": "stage1.norm1", "teacher_layers": "stage2.norm1"},
}
SHORT = {
    "data.validation": 494,  # leaves 256 training images
    "data.labelled": 120,
    "teacher.model.width": 4,
    "student.model.width": 2,
    "controls": [],
    "train.epochs": 2,
    "threads": 1,
}


@pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")
@pytest.mark.parametrize("name", SCHEMES)
def test_it_trains_a_student_for_two_epochs(name: str, fashion_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_file(ConvNet(width=4).state_dict(), tmp_path / "teacher.safetensors")
    paths = {
        "teacher.weights": str(tmp_path / "teacher.safetensors"),
        "data.dataset": {"name": "fashion-mnist", "root": str(fashion_folder)},
    }
    shipped = load_recipe("fashion-offline", SHORT | paths)
    changes = {"scheme": {"name": name, **SCHEMES[name]}, "knowledge": {}}
    kdx.run(check_recipe(shipped.dump() | changes), folder=tmp_path / "run", report=False)
    folder = tmp_path / "run" / "distilled"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    term = {"simkd": "term/simkd", "hint-stage": "term/hint", "boundary-stage": "term/ab"}[name]
    logged = [line[term] for line in lines if term in line]
    assert logged
    assert all(math.isfinite(value) for value in logged)
    exported = load_file(folder / "student.safetensors")
    roots = {key.split(".")[0] for key in exported}
    assert roots == ({"body", "projector", "classifier"} if name == "simkd" else {"stage1", "stage2", "fc"})


@pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")
def test_ofd_takes_its_margins_from_the_teachers_batchnorm(fashion_folder: Path, tmp_path: Path, monkeypatch) -> None:
    torch.manual_seed(1)
    teacher = ConvNet(width=4)
    torch.nn.init.normal_(teacher.stage1.norm1.bias)
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    overrides = {
        "teacher.weights": str(tmp_path / "teacher.safetensors"),
        "teacher.batch_statistics": True,
        "data.dataset": {"name": "fashion-mnist", "root": str(fashion_folder)},
        "knowledge.ofd": {
            "name": "ofd",
            "weight": 1e-3,
            "student": "stage1.norm1",
            "teacher": "stage1.norm1",
            "margins": "batchnorm",
        },
    }
    seen = []
    original = OFD.build
    monkeypatch.setattr(OFD, "build", lambda self, pairs: (original(self, pairs), seen.append(self.connectors[0])))
    kdx.run("fashion-offline", folder=tmp_path / "run", report=False, **SHORT, **overrides)
    assert torch.equal(seen[-1].margin.cpu(), batchnorm_margin(teacher.stage1.norm1))
    lines = (tmp_path / "run" / "distilled" / "metrics.jsonl").read_text().splitlines()
    assert any(json.loads(line).get("term/ofd", 0) > 0 for line in lines)
