"""Pruning in stages: in turns with distillation, in several shapes, and by several ways in one recipe."""

from __future__ import annotations

import json

import pytest
import torch
from kdx_prune.iterative import IterativePruning
from kdx_prune.minitron import BestOf, Minitron
from kdx_prune.pruned import Budget, Cut, Pruned

import kdx
from kdx import Ref
from kdx.errors import KdxError, PlanError
from kdx.testing import parametrize_checks

pytestmark = [
    pytest.mark.filterwarnings("ignore::kdx.assistants.GapWarning"),
    pytest.mark.filterwarnings("ignore::kdx.assistants.WeakTeacherWarning"),
    pytest.mark.filterwarnings("ignore::kdx.assistants.NoGainWarning"),
]


@parametrize_checks(IterativePruning(steps=2, how="prune", flops="50%"))
def test_conformance_of_iterative_pruning(check) -> None:
    check()


@parametrize_checks(Minitron(flops="50%"))
def test_conformance_of_minitron(check) -> None:
    check()


BASE = """
data: {dataset: {name: digits}, validation: 200, labelled: 100}
teacher: {model: {name: mlp, hidden: [24, 24, 24]}, train: {epochs: 1, batch_size: 256}}
knowledge: {kd: {name: soft-targets, weight: 0.9}}
train: {epochs: 1, batch_size: 256}
controls: []
threads: 1
"""


def ran(tmp_path, text, name="run", **options):
    recipe = tmp_path / f"{name}.yaml"
    recipe.write_text(BASE + text)
    return kdx.run(recipe, folder=tmp_path / name, report=False, **options), tmp_path / name


def edits(folder, stage):
    return json.loads((folder / stage / "model.json").read_text())["model"]["config"]["edits"]


def test_the_teacher_is_pruned_and_distilled_in_turns_and_resumes(tmp_path):
    text = (
        "student: {model: {name: derived, how: {name: prune, importance: distillation, rows: 64}, flops: 36%}}\n"
        "assistant: {name: iterative-pruning, steps: 2}\n"
    )
    summary, folder = ran(tmp_path, text)
    stages = summary["stages"]
    whole = stages["teacher"]["flops"]
    assert 0.5 < stages["pruned-1"]["flops"] / whole <= 0.6
    assert 0.3 < stages["distilled"]["flops"] / whole <= 0.36
    first, second = edits(folder, "pruned-1"), edits(folder, "distilled")
    assert second[0] == first[0]
    assert [edit["how"] for edit in second] == ["width", "width"]
    assert kdx.load(folder).model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    for stage in ("distilled", "pruned-1"):
        (folder / stage / "result.json").unlink()
    again = kdx.run(folder / "recipe.yaml", folder=folder, report=False, resume=True)
    assert again["stages"]["distilled"]["test"] == stages["distilled"]["test"]


def test_depth_and_width_are_cut_in_one_recipe(tmp_path):
    text = """student:
  model:
    name: pruned
    cuts:
    - {how: {name: prune-blocks, rows: 64}, flops: 90%}
    - {how: {name: prune, importance: activation, rows: 64}, flops: 45%}
"""
    summary, folder = ran(tmp_path, text)
    assert [edit["how"] for edit in edits(folder, "distilled")] == ["depth", "width"]
    share = summary["stages"]["distilled"]["flops"] / summary["stages"]["teacher"]["flops"]
    assert 0.35 < share <= 0.45


def test_minitron_goes_on_with_the_best_candidate(tmp_path):
    text = (
        "student: {model: {name: derived, how: width, flops: 50%}}\n"
        "assistant: {name: minitron, depths: [1.0, 0.85], width: {rows: 64}}\n"
    )
    summary, folder = ran(tmp_path, text)
    quality = {name: summary["stages"][name]["validation"]["accuracy"] for name in ("candidate-1", "candidate-2")}
    best = max(quality, key=quality.get)
    assert edits(folder, "distilled") == edits(folder, best)
    assert [edit["how"] for edit in edits(folder, "candidate-2")] == ["depth", "width"]
    started = folder / "distilled" / "start.safetensors"
    assert started.exists()


def test_the_best_has_the_lowest_error_where_less_is_better():
    class Finished:
        task = kdx.make("task", "regression")

        def quality(self, stage):
            return {"a": 3.0, "b": 1.0, "c": 2.0}[stage]

        def ref(self, stage):
            return Ref(stage)

        def model(self, stage):
            return torch.nn.Linear(1, 1)

    assert BestOf(["a", "b", "c"]).produce(Finished()).model == Ref("b")


def test_budgets_are_shares_or_amounts():
    assert Budget("flops", 0.5).amount(100) == Budget("flops", "50%").amount(100) == Budget("flops", 50).amount(7) == 50
    assert Budget("latency", "2.5ms").amount(1) == 2.5
    assert Pruned([{"how": "prune", "flops": "50%"}]) == Pruned([Cut(Ref("prune"), Budget("flops", "50%"))])
    assert Pruned([{"how": "prune", "flops": "50%"}]) != Pruned([{"how": "prune", "flops": "40%"}])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: IterativePruning(steps=0), "steps must be at least 1, got 0"),
        (lambda: IterativePruning(epochs=0), "epochs must be at least 1, got 0"),
        (lambda: IterativePruning().plan(Ref("mlp"), Ref("mlp")), "not told how to prune: write student:"),
        (lambda: IterativePruning(how="prune").plan(Ref("mlp"), Ref("mlp")), "give one budget: .* got none"),
        (lambda: IterativePruning(flops="50%", params="5%"), r"give one budget: .* got \['params', 'flops'\]"),
        (lambda: Minitron(depths=[2.0]), r"depths must be shares .* got \[2.0\]"),
        (lambda: Minitron(epochs=0), "epochs must be at least 1, got 0"),
        (lambda: Minitron().plan(Ref("mlp"), Ref("mlp")), "give one budget"),
        (lambda: Pruned([]), r"cuts must be a list, .* got \[\]"),
        (lambda: Pruned([{"flops": "50%"}]), "each must have how and one of params"),
        (lambda: Pruned([{"how": "prune", "flop": "50%"}]), r"got \['flop'\]"),
        (
            lambda: Pruned([{"how": "prune", "flops": "half"}]),
            "a share as 25% or an amount as 60k or 2.5ms; got 'half'",
        ),
    ],
)
def test_wrong_options_are_refused(make, told):
    with pytest.raises(PlanError, match=told):
        make()


def test_a_budget_nobody_can_meet_names_the_nearest_and_the_stage(tmp_path):
    how = "{name: prune, spread: global, rows: 64, least: 0.5}"
    text = f"student: {{model: {{name: pruned, cuts: [{{how: {how}, flops: 1%}}]}}}}\n"
    with pytest.raises(KdxError, match=r"cannot bring .* down to .* it reaches"):
        ran(tmp_path, text)
