"""The first stage of FitNets touches the layers up to the guided one and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import kdx
from kdx.knowledge.hint import hint


class Net(nn.Module):
    """Two stages with BatchNorm, dropout after the first, and a shortcut around the second."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width, affine=False))
        self.fc = nn.Linear(width, 3)

    def forward(self, x):
        x = self.first(x)
        return self.fc((x + self.second(self.drop(x))).mean((2, 3)))


@pytest.fixture
def data():
    torch.manual_seed(1)
    return [(torch.randn(8, 1, 6, 6), torch.randint(3, (8,))) for _ in range(4)]


def make(student, teacher, **options):
    layers = {"student_layer": "first", "teacher_layer": "first"} | options
    return kdx.make("scheme", "hint-stage", student, teacher, **layers)


def nets():
    torch.manual_seed(0)
    return Net(4), Net(6)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_hint_stage_moves_only_what_comes_before_the_guided_layer_buffers_included(data, optimizer):
    student, teacher = nets()
    before = copy.deepcopy(student.state_dict())
    teacher_before = copy.deepcopy(teacher.state_dict())
    options = {"name": optimizer, "lr": 0.02, "weight_decay": 0.1} | ({"momentum": 0.9} if optimizer == "SGD" else {})
    scheme = make(student, teacher)
    kdx.fit(scheme, data, epochs=3, device="cpu", optimizer=options, clip_grad_norm=10.0)
    for name, value in student.state_dict().items():
        changed = not torch.equal(value, before[name])
        assert changed == name.startswith("first."), name
    assert all(torch.equal(value, teacher_before[name]) for name, value in teacher.state_dict().items())


def test_hint_stage_loss_is_half_the_squared_norm_and_falls(data):
    student, teacher = nets()
    scheme = make(student, teacher)
    scheme.setup(data[0])
    scheme.eval()
    losses = scheme(data[0])
    adapted = scheme.knowledge["hint"].adapters[0](student.first(data[0][0]))
    wanted = 0.5 * (adapted - teacher.first(data[0][0])).square().sum() / 8
    torch.testing.assert_close(losses.total, wanted)
    assert list(losses.terms) == ["hint"]
    kdx.fit(scheme, data, epochs=10, device="cpu", optimizer={"name": "AdamW", "lr": 0.02})
    assert scheme.eval()(data[0]).total < 0.8 * losses.total


def test_hint_stage_keeps_later_modules_in_evaluation_mode_and_the_next_stage_trains_them(data):
    student, teacher = nets()
    scheme = make(student, teacher)
    scheme.setup(data[0])
    scheme.train()
    modes: dict[nn.Module, bool] = {}
    for module in student.modules():
        module.register_forward_pre_hook(lambda m, _: modes.update({m: m.training}))
    state = torch.get_rng_state()
    scheme(data[0])
    assert modes[student.first[1]]
    assert not any(modes[module] for module in (student.drop, student.second[1], student.fc))
    assert all(module.training for module in student.modules())
    assert torch.equal(torch.get_rng_state(), state), "dropout after the guided layer drew numbers"
    before = copy.deepcopy(student.state_dict())
    offline = kdx.Offline(student, teacher, knowledge={"kd": (0.9, kdx.SoftTargets(4.0))})
    kdx.fit(offline, data, epochs=1, device="cpu")
    assert all(module.training for module in student.modules())
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert {"fc.weight", "second.0.weight", "second.1.running_mean", "first.0.weight"} <= changed


def test_hint_stage_on_the_input_of_a_layer_leaves_that_layer_alone(data):
    student, teacher = nets()
    scheme = make(student, teacher, student_layer="second:input", teacher_layer="second:input")
    before = copy.deepcopy(student.state_dict())
    kdx.fit(scheme, data, epochs=1, device="cpu")
    assert all(torch.equal(value, before[k]) for k, value in student.state_dict().items() if k.startswith("second"))


def test_hint_stage_names_the_parameters_that_data_parallelism_must_not_wait_for(data):
    student, teacher = nets()
    scheme = make(student, teacher)
    scheme.setup(data[0])
    waiting = {name for name, _ in scheme.named_parameters()} - set(scheme._ddp_params_and_buffers_to_ignore)
    assert waiting == {f"student.first.{name}" for name, _ in student.first.named_parameters()} | {
        "knowledge.hint.adapters.0.weight"
    }


def test_hint_stage_takes_the_mean_if_asked(data):
    student, teacher = nets()
    scheme = make(student, teacher, variant="code")
    scheme.setup(data[0])
    scheme.eval()
    adapted = scheme.knowledge["hint"].adapters[0](student.first(data[0][0]))
    torch.testing.assert_close(scheme(data[0]).total, hint(adapted, teacher.first(data[0][0])))
