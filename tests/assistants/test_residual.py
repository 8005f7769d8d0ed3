"""Residual distillation: within the budget, the student as it was, the sum at inference and in the export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import kdx
from kdx.analysis.flops import count_flops
from kdx.assistants.residual import ResidualKD
from kdx.batch import Batch
from kdx.errors import PlanError
from kdx.experiment.experiment import Experiment
from kdx.experiment.recipe_files import check_recipe
from kdx.models.residual_sum import ResidualSum
from kdx.ref import Ref
from kdx.schemes.residual import Residual

pytestmark = [
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning"),
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.GapWarning"),
]
SHAPE = {"num_classes": 10, "input_shape": (1, 8, 8)}
STUDENT = {"name": "convnet", "width": 8, "stages": 2}


def recipe(**options):
    return check_recipe(
        {
            "threads": 1,
            "data": {"dataset": {"name": "digits"}, "validation": 1000},
            "teacher": {
                "model": {"name": "convnet", "width": 12, "stages": 2},
                "train": {"epochs": 2, "batch_size": 64},
            },
            "student": {"model": STUDENT},
            "knowledge": {"kd": {"name": "soft-targets"}},
            "train": {"epochs": 2, "batch_size": 64},
            "assistant": {"name": "residual", **options},
        }
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "residual"
    Experiment(recipe(), folder).run()
    return folder


def made(model: dict) -> nn.Module:
    options = dict(model)
    return kdx.make("model", options.pop("name"), **options, **SHAPE)


def exported(folder: Path) -> nn.Module:
    """The result as a user loads it: one model by name, one file of weights."""
    found = json.loads((folder / "distilled" / "model.json").read_text())
    model = made(found["model"])
    model.load_state_dict(load_file(folder / "distilled" / "student.safetensors"))
    return model.eval()


def test_student_and_assistant_together_cost_no_more_than_the_student_asked_for(finished: Path) -> None:
    asked, pair = made(STUDENT), exported(finished)
    parameters = [sum(p.numel() for p in model.parameters()) for model in (asked, pair)]
    example = torch.zeros(1, 1, 8, 8)
    assert parameters[1] <= parameters[0]
    assert count_flops(pair, example) <= count_flops(asked, example)
    options = json.loads((finished / "distilled" / "model.json").read_text())["model"]
    wider = {**options, "assistant": {**options["assistant"], "width": options["assistant"]["width"] + 1}}
    larger = made(wider)
    over_in_parameters = sum(p.numel() for p in larger.parameters()) > parameters[0]
    assert over_in_parameters or count_flops(larger, example) > count_flops(asked, example)  # no room is left


def test_the_export_is_one_ordinary_model_that_adds_the_two_up(finished: Path) -> None:
    pair = exported(finished)
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(pair(x), pair.student(x) + pair.assistant(x))
    assert not torch.allclose(pair(x), pair.student(x), atol=1e-3)
    experiment = Experiment(recipe(), finished)
    found = kdx.training.evaluation.evaluate(pair, experiment.data.evaluation(experiment.data.test))
    told = json.loads((finished / "summary.json").read_text())["stages"]["distilled"]
    assert found["accuracy"] == pytest.approx(told["test"]["accuracy"])
    assert told["parameters"] == sum(p.numel() for p in pair.parameters())


def test_the_student_in_the_pair_is_the_one_that_was_distilled_before(finished: Path) -> None:
    student = load_file(finished / "student" / "student.safetensors")
    pair = load_file(finished / "distilled" / "student.safetensors")
    assert all(pair[f"student.{name}"].equal(value) for name, value in student.items())  # running statistics too
    start = load_file(finished / "distilled" / "start.safetensors")
    assert any(not pair[name].equal(start[name]) for name in pair if name.startswith("assistant."))


def test_who_teaches_whom() -> None:
    stages = ResidualKD().plan(Ref("resnet"), Ref("convnet"))
    assert [(stage.name, stage.role, stage.teachers) for stage in stages] == [
        ("student", "assistant", ("teacher",)),
        ("distilled", "distilled", ("teacher",)),
    ]
    assert stages[1].needs == ("teacher", "student")


def test_a_budget_that_is_too_small_is_said(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"no convnet fits into \d+ parameters .* ask for a larger student"):
        Experiment(recipe(share=0.01), tmp_path / "run").run()
    with pytest.raises(PlanError, match="share must lie between 0 and 1"):
        ResidualKD(share=1.0)
    with pytest.raises(PlanError, match="has no integer option 'hidden'"):
        ResidualKD(vary="hidden").plan(Ref("mlp"), Ref("mlp"))


def pair_and_teacher() -> tuple[ResidualSum, nn.Module]:
    small = {"name": "convnet", "width": 2, "stages": 2}
    return ResidualSum(STUDENT, small, **SHAPE), made(STUDENT)


def test_the_loss_is_the_task_on_the_sum_and_the_residual_of_the_assistant() -> None:
    pair, teacher = pair_and_teacher()
    batch = Batch(torch.randn(6, 1, 8, 8), torch.arange(6))
    losses = Residual(pair, teacher, task=(0.5, torch.nn.functional.cross_entropy), weight=2.0).eval()(batch)
    z = [model(batch.inputs).double() for model in (teacher, pair.student, pair.assistant)]
    residual = 2.0 * ((z[2] - (z[0] - z[1])) ** 2).mean()
    rows = -(z[1] + z[2]).log_softmax(1)[torch.arange(6), batch.targets]
    torch.testing.assert_close(losses.terms["residual"].double(), residual)
    torch.testing.assert_close(losses.terms["task"].double(), 0.5 * rows.mean())


def test_gradients_reach_the_assistant_alone_and_no_statistic_of_the_student_moves() -> None:
    pair, teacher = pair_and_teacher()
    scheme = Residual(pair, teacher).train()
    before = {name: value.clone() for name, value in pair.student.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in scheme.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    statistics = [b.clone() for b in pair.assistant.buffers()]
    for _ in range(3):
        optimizer.zero_grad()
        scheme((torch.randn(6, 1, 8, 8), torch.arange(6))).total.backward()
        optimizer.step()
    assert all(value.equal(before[name]) for name, value in pair.student.state_dict().items())
    assert all(p.grad is None for p in pair.student.parameters())
    assert all(p.grad is not None for p in pair.assistant.parameters())
    assert any(not now.equal(then) for now, then in zip(pair.assistant.buffers(), statistics, strict=True))
    assert teacher.training is False


def test_twenty_steps_lower_the_residual() -> None:
    torch.manual_seed(0)
    pair, teacher = pair_and_teacher()
    scheme = Residual(pair, teacher, task=None)
    x = torch.randn(64, 1, 8, 8)
    optimizer = torch.optim.Adam([p for p in scheme.parameters() if p.requires_grad], lr=0.02)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        losses = scheme(Batch(x))
        losses.total.backward()
        optimizer.step()
        values.append(losses.total.item())
    assert values[-1] < 0.5 * values[0]


def test_a_model_that_is_no_pair_is_refused() -> None:
    with pytest.raises(TypeError, match="must have the submodules student and assistant"):
        Residual(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"assistant: expected \{name: "):
        ResidualSum(STUDENT, {"width": 2}, **SHAPE)
