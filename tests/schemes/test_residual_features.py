"""Residual distillation on feature maps: its two errors, who learns from which, the sum, and the budget of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import kdx
from kdx.analysis.flops import count_flops
from kdx.assistants import ResidualKD
from kdx.errors import PlanError
from kdx.experiment.recipe_files import check_recipe
from kdx.models import ConvNet, FeatureSum
from kdx.ref import Ref
from kdx.schemes import ResidualFeatures

SHAPE = {"num_classes": 10, "input_shape": (1, 8, 8)}


def net(width: int) -> dict:
    return {"name": "convnet", "width": width, "stages": 2}


def pair(channels: int = 12) -> FeatureSum:
    return FeatureSum(net(4), net(2), "stage2", channels=channels, **SHAPE)


def scheme(**options) -> ResidualFeatures:
    torch.manual_seed(0)
    return ResidualFeatures(pair(), ConvNet(6, stages=2, **SHAPE), teacher_layer="stage2", **options)


def batch() -> kdx.Batch:
    return kdx.Batch(torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6))


def test_the_terms_are_the_errors_of_both_maps_and_the_task_on_the_sum():
    made = scheme(mimic=2.0, residual=3.0, task=(0.5, nn.functional.cross_entropy)).double().eval()
    x, y = batch().inputs.double(), batch().targets
    losses = made((x, y))
    both, teacher = made.pair, made.teacher.model
    f_t = teacher.stage2(teacher.stage1(x))
    maps = [model.stage2(model.stage1(x)) for model in (both.student, both.assistant)]
    s, a = (
        torch.einsum("oc,nchw->nohw", conv.weight[:, :, 0, 0], feature)
        for conv, feature in zip((both.student_map, both.assistant_map), maps, strict=True)
    )
    torch.testing.assert_close(losses.terms["mimic"], 2.0 * ((s - f_t) ** 2).mean())
    torch.testing.assert_close(losses.terms["residual"], 3.0 * ((a - (f_t - s)) ** 2).mean())
    logits = (s + a).mean((2, 3)) @ both.classifier.weight.T + both.classifier.bias
    task = -logits.log_softmax(1)[torch.arange(6), y].mean()
    torch.testing.assert_close(losses.terms["task"], 0.5 * task)
    torch.testing.assert_close(both(x), logits)


def test_the_residual_teaches_the_assistant_alone_and_the_mimicry_the_student_alone():
    made = scheme()
    for term, learner, other in (("residual", "assistant", "student"), ("mimic", "student", "assistant")):
        made.zero_grad()
        made(batch()).terms[term].backward()
        for name, parameter in made.pair.named_parameters():
            if name.startswith(other):
                assert parameter.grad is None or parameter.grad.abs().max() == 0, (term, name)
        reached = [p.grad for n, p in made.pair.named_parameters() if n.startswith(learner) and p.grad is not None]
        assert max(gradient.abs().max() for gradient in reached) > 0
    assert all(p.grad is None for p in made.teacher.model.parameters())


def test_training_brings_the_sum_nearer_to_the_teacher_than_the_student_alone():
    torch.manual_seed(0)
    wide = FeatureSum(net(2), net(8), "stage2", channels=12, **SHAPE)
    made = ResidualFeatures(wide, ConvNet(6, stages=2, **SHAPE), teacher_layer="stage2", task=None)
    kdx.fit(made, [batch()], epochs=40, device="cpu", optimizer={"name": "AdamW", "lr": 0.02})
    with torch.no_grad():
        losses = made(batch())
    assert losses.terms["residual"] < 0.9 * losses.terms["mimic"]  # the first is how far the sum is


def test_knowledge_on_the_logits_of_the_sum_is_a_term_too_and_a_larger_map_is_pooled():
    torch.manual_seed(0)
    teacher = ConvNet(6, stages=2, **SHAPE)
    made = ResidualFeatures(
        pair(channels=6), teacher, teacher_layer="stage1", knowledge={"kd": (0.5, kdx.SoftTargets(2.0))}
    )
    made.setup(batch())
    losses = made.eval()(batch())
    with torch.no_grad():
        x = batch().inputs
        expected = 0.5 * kdx.ops.softmax_kl(made.pair(x), teacher.eval()(x), temperature=2.0)
    torch.testing.assert_close(losses.terms["kd"], expected)
    assert losses.terms["mimic"].isfinite()


def test_what_does_not_fit_is_refused():
    with pytest.raises(TypeError, match=r"expected a kdx\.models\.FeatureSum"):
        ResidualFeatures(nn.Linear(2, 2), nn.Linear(2, 2), teacher_layer="x")
    made = ResidualFeatures(pair(channels=5), ConvNet(6, stages=2, **SHAPE), teacher_layer="stage2")
    with pytest.raises(ValueError, match=r"has 12 channels and the pair's maps have 5; build .* with channels=12"):
        made(batch())
    with pytest.raises(ValueError, match=r"layer 'avgpool' gives \[1, 8\], and a map \[N, C, H, W\] was expected"):
        FeatureSum(net(4), net(2), "avgpool", channels=6, **SHAPE)
    with pytest.raises(ValueError, match="maps of unequal height and width"):
        FeatureSum(net(4), {"name": "convnet", "width": 2, "stages": 3}, "stage2", channels=6, **SHAPE)
    with pytest.raises(PlanError, match="give layer too"):
        ResidualKD(teacher_layer="stage2")


@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")
@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.GapWarning")
def test_a_run_exports_one_model_within_the_cost_of_the_student_asked_for(tmp_path: Path):
    recipe = check_recipe(
        {
            "threads": 1,
            "data": {"dataset": {"name": "digits"}, "validation": 1000},
            "teacher": {"model": net(8), "train": {"epochs": 1, "batch_size": 64}},
            "student": {"model": net(12)},
            "assistant": {"name": "residual", "layer": "stage2"},
            "knowledge": {"kd": {"name": "soft-targets"}},
            "train": {"epochs": 1, "batch_size": 64},
            "controls": [],
        }
    )
    kdx.run(recipe, folder=tmp_path / "run", report=False)
    folder = tmp_path / "run" / "distilled"
    options = json.loads((folder / "model.json").read_text())["model"]
    assert options.pop("name") == "feature-sum"
    assert options["channels"] == 16
    model = FeatureSum(**options, **SHAPE)
    model.load_state_dict(load_file(folder / "student.safetensors"))
    asked = ConvNet(12, stages=2, **SHAPE)
    example = torch.zeros(1, 1, 8, 8)
    counts = [sum(p.numel() for p in each.parameters()) for each in (model, asked)]
    assert counts[0] <= counts[1]
    assert count_flops(model, example) <= count_flops(asked, example)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(any(line.get(f"term/{name}", 0) > 0 for line in lines) for name in ("mimic", "residual", "kd", "task"))


def test_the_plan_is_one_stage_taught_by_the_teacher():
    (stage,) = ResidualKD(layer="stage2", weight=0.5).plan(Ref("convnet", width=24), Ref("convnet", width=8))
    assert (stage.name, stage.teachers, stage.needs) == ("distilled", ("teacher",), ("teacher",))
    assert stage.scheme == Ref("residual-features", teacher_layer="stage2", mimic=0.5, residual=0.5)
