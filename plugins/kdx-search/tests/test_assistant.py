"""A supernet as a plan of a recipe."""

from __future__ import annotations

import json

import pytest
import torch
from kdx_search import FromSupernet

import kdx
from kdx import Ref
from kdx.students import build
from kdx.testing import parametrize_checks

RECIPE = """
data: {dataset: {name: digits}, validation: 200}
teacher: {model: {name: mlp}, train: {epochs: 2}}
student: {model: {name: mlp, hidden: [32, 32, 32]}}
assistant: {name: from-supernet, flops: "50%", evaluations: 4, samples: 1, calibration: 2, widths: [0.5, 1.0]}
knowledge: {kd: {name: soft-targets, weight: 0.9}}
train: {epochs: 1}
controls: []
threads: 1
"""


@parametrize_checks(FromSupernet(flops="50%"))
def test_conformance(check) -> None:
    check()


def test_the_plan_trains_the_supernet_first_and_says_how() -> None:
    plan = FromSupernet(params=0.5, samples=1, epochs=3, keep=["depth:*"]).plan(Ref("mlp"), Ref("convnet", width=8))
    supernet, distilled = plan
    assert supernet.scheme.name == "supernet"
    assert supernet.scheme.options["keep"] == ["depth:*"]
    assert dict(supernet.train) == {"epochs": 3}
    assert distilled.model.needs == ("supernet",)
    assert plan == FromSupernet(params=0.5, samples=1, epochs=3, keep=["depth:*"]).plan(Ref("mlp"), supernet.model)
    with pytest.raises(ValueError, match="give a budget, params or flops"):
        FromSupernet()


def test_a_budget_that_nothing_meets_is_refused_before_anything_is_trained(tmp_path) -> None:
    (tmp_path / "searched.yaml").write_text(RECIPE.replace("50%", "0.1%"))
    with pytest.raises(kdx.KdxError, match=r"stage supernet: no sub-network has at most \d+ flops: the smallest has"):
        kdx.run(tmp_path / "searched.yaml", folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.GapWarning")  # two epochs make no student
def test_it_runs_in_a_recipe_and_the_student_is_a_sub_network_within_the_budget(tmp_path) -> None:
    (tmp_path / "searched.yaml").write_text(RECIPE)
    summary = kdx.run(tmp_path / "searched.yaml", folder=tmp_path / "run")
    stages = summary["stages"]
    assert list(stages) == ["teacher", "alone", "supernet", "distilled"]
    assert stages["distilled"]["flops"] <= 0.5 * stages["supernet"]["flops"]
    kept = json.loads((tmp_path / "run" / "distilled" / "model.json").read_text())
    [edit, *_] = kept["model"]["config"]["edits"]
    assert edit["how"] in ("width", "depth")
    student = build(kept["model"]["config"])
    assert sum(p.numel() for p in student.parameters()) == stages["distilled"]["parameters"]
    loaded = kdx.load(tmp_path / "run")
    assert {name: t.shape for name, t in loaded.model.state_dict().items()} == {
        name: t.shape for name, t in student.state_dict().items()
    }
    assert torch.isfinite(torch.tensor(stages["distilled"]["test"]["accuracy"]))
