"""The paraphraser of a teacher: what is trained, what stays, and the two stages of factor transfer in a run."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import kdx
from kdx.experiment.recipe_files import check_recipe
from kdx.models import ConvNet, ViT
from kdx.schemes import Paraphrase
from kdx.teachers import Paraphrased


def paraphrased(**options) -> Paraphrased:
    torch.manual_seed(0)
    return Paraphrased(ConvNet(4, stages=2, input_shape=(1, 8, 8)), "stage2", channels=8, **options)


def x(rows: int = 6) -> torch.Tensor:
    return torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_the_loss_is_how_far_the_decoded_map_is_from_the_teachers(variant):
    model = paraphrased().double()
    loss = Paraphrase(model, variant=variant)(kdx.Batch(x().double())).total
    model.eval()
    teacher, part = model.teacher, model.paraphraser
    feature = teacher.stage2(teacher.stage1(x().double()))
    y = feature
    for layer in [*part.encoder[::2], *part.decoder[::2]]:
        apply = F.conv_transpose2d if isinstance(layer, nn.ConvTranspose2d) else F.conv2d
        y = F.leaky_relu(apply(y, layer.weight, layer.bias, padding=1), 0.1)
    apart = feature - y
    wanted = apart.abs().mean() if variant == "code" else apart.square().sum() / 6
    torch.testing.assert_close(loss, wanted)


def test_training_moves_the_paraphraser_alone_and_lowers_its_error():
    model = paraphrased()
    before = copy.deepcopy(model.state_dict())
    scheme = Paraphrase(model)
    first = scheme(kdx.Batch(x())).total.item()
    optimizer = {"name": "AdamW", "lr": 0.01, "weight_decay": 0.1}
    run = kdx.fit(scheme, [kdx.Batch(x())], epochs=30, device="cpu", optimizer=optimizer)
    assert run.step == 30
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("teacher."), name
    assert scheme(kdx.Batch(x())).total.item() < 0.7 * first
    assert not any(module.training for module in model.teacher.modules())


def test_the_student_learns_from_the_factor_and_the_paraphraser_no_longer_changes():
    model = paraphrased()
    torch.manual_seed(2)
    student = ConvNet(2, stages=2, input_shape=(1, 8, 8))
    terms = {"ft": (500.0, kdx.knowledge.FT(student="stage2")), "kd": kdx.SoftTargets(4.0)}
    scheme = kdx.Offline(student, model, knowledge=terms)
    batch = kdx.Batch(x(), torch.arange(6))
    scheme.setup(batch)
    before = copy.deepcopy(model.state_dict())
    losses = scheme(batch)
    losses.total.backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in scheme.knowledge["ft"].parameters())
    with torch.no_grad():
        kd = kdx.ops.softmax_kl(student(x()), model.teacher(x()), temperature=4.0)
    torch.testing.assert_close(losses.terms["kd"], kd)
    kdx.fit(scheme, [batch], epochs=2, device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tokens_on_a_grid_are_paraphrased_as_a_map():
    torch.manual_seed(0)
    model = Paraphrased(ViT(input_shape=(1, 8, 8)), kdx.Tap("blocks.1", grid=(2, 2)), channels=64)
    found = model.factor(model.taps(x()))
    assert found.shape == (6, 32, 2, 2)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"channels=8, or tap a layer with maps"):
        Paraphrased(ConvNet(4, stages=2), "stage2", channels=5)(torch.zeros(1, 1, 28, 28))
    with pytest.raises(ValueError, match="leaves no factor"):
        paraphrased(rate=0.05)
    with pytest.raises(TypeError, match=r"expected a kdx\.teachers\.Paraphrased.*got Linear"):
        Paraphrase(nn.Linear(2, 2))


@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")
@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.GapWarning")
def test_a_run_trains_the_paraphraser_first_and_leaves_the_teacher_and_no_part_of_it_in_the_student(tmp_path: Path):
    recipe = check_recipe(
        {
            "threads": 1,
            "data": {"dataset": {"name": "digits"}, "validation": 1000},
            "teacher": {
                "model": {"name": "convnet", "width": 6, "stages": 2},
                "train": {"epochs": 1, "batch_size": 64},
            },
            "student": {"model": {"name": "convnet", "width": 2, "stages": 2}},
            "assistant": {"name": "factor-transfer", "layer": "stage2", "train": {"epochs": 2}},
            "knowledge": {"ft": {"name": "ft", "weight": 10.0, "student": "stage2"}, "kd": {"name": "soft-targets"}},
            "train": {"epochs": 1, "batch_size": 64},
            "controls": [],
        }
    )
    kdx.run(recipe, folder=tmp_path / "run", report=False)
    teacher = load_file(tmp_path / "run" / "teacher" / "student.safetensors")
    both = load_file(tmp_path / "run" / "paraphraser" / "student.safetensors")
    start = load_file(tmp_path / "run" / "paraphraser" / "start.safetensors")
    assert all(both[f"teacher.{name}"].equal(value) for name, value in teacher.items())
    assert any(not both[name].equal(start[name]) for name in both if name.startswith("paraphraser."))
    student = load_file(tmp_path / "run" / "distilled" / "student.safetensors")
    assert {name.split(".")[0] for name in student} == {"stage1", "stage2", "fc"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "distilled" / "metrics.jsonl").read_text().splitlines()]
    assert any(line.get("term/ft", 0) > 0 for line in lines)
