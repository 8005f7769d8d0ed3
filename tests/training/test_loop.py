"""fit: accumulation, precision, schedules, evaluation, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdx
from kdx import rng
from kdx.errors import UnknownNameError
from kdx.hookspecs import hookimpl
from kdx.training.evaluation import evaluate


def distil(net, seed: int = 0) -> kdx.Offline:
    torch.manual_seed(seed)
    return kdx.Offline(net(4), net(6), knowledge={"hint": (1.0, kdx.Hint(student="conv", teacher="conv"))})


def weights(scheme: kdx.Scheme) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in scheme.state_dict().items()}


def test_training_lowers_the_loss_and_returns_the_history(net, loader) -> None:
    scheme = kdx.Supervised(net())
    run = kdx.fit(scheme, loader, epochs=30, evaluate=loader, optimizer={"name": "AdamW", "lr": 0.03}, device="cpu")
    assert [row["epoch"] for row in run.history] == list(range(1, 31))
    assert run.step == run.total_steps == 180
    assert run.history[-1]["student/accuracy"] > 0.9
    assert scheme.student.training


def test_the_users_script_of_the_design_works(net, loader) -> None:
    torch.manual_seed(0)
    student, teacher = net(4), net(6)
    scheme = kdx.Offline(
        student,
        teacher,
        task=(0.1, F.cross_entropy),
        knowledge={
            "kd": (0.9, kdx.SoftTargets(temperature=4.0)),
            "hint": (1.0, kdx.make("knowledge", "hint", student="conv", teacher="conv")),
        },
    )
    kdx.fit(scheme, loader, epochs=2, evaluate=loader)
    optimizer = torch.optim.SGD(scheme.parameters(), lr=0.01)
    for batch in loader:
        losses = scheme(batch)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.isfinite(losses.total)


@pytest.mark.parametrize("rows", [64, 56], ids=["even", "ragged"])
def test_one_batch_of_64_equals_four_of_16(net, images, rows) -> None:
    inputs, targets = (x[:rows] for x in images)
    targets = targets.clone()
    targets[3:20] = -100  # labelled rows are spread unevenly over the micro-batches

    def train(batch_size: int, accumulate: int) -> kdx.Scheme:
        scheme = distil(net)
        scheme.student.norm = scheme.teacher.model.norm = nn.Identity()
        scheme.student.drop.p = 0.0
        loader = DataLoader(TensorDataset(inputs, targets), batch_size)
        kdx.fit(scheme, loader, epochs=3, accumulate=accumulate, optimizer="SGD", clip_grad_norm=1.0, seed=1)
        return scheme

    whole, parts = train(64, 1), train(16, 4)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_gradients_are_clipped(net, loader) -> None:
    scheme = kdx.Supervised(net())
    before = weights(scheme)
    kdx.fit(scheme, loader, steps=1, optimizer={"name": "SGD", "lr": 1.0, "momentum": 0.0}, clip_grad_norm=1e-3)
    moved = sum(float((p.detach() - before[n]).square().sum()) for n, p in scheme.named_parameters()) ** 0.5
    assert 0 < moved <= 1e-3 * 1.001


def test_bf16_trains_and_leaves_the_scheme_usable(net, loader, batch) -> None:
    scheme = distil(net)
    kdx.fit(scheme, loader, epochs=1, mixed_precision="bf16")
    assert {p.dtype for p in scheme.parameters()} == {torch.float32}
    assert scheme(batch).total.dtype == torch.float32
    kdx.fit(scheme, loader, epochs=1, mixed_precision="no")


def test_evaluation_restores_modes_and_random_state(net, loader, images) -> None:
    model = net().train()
    model.norm.eval()
    random_before = rng.capture()
    running = model.norm.running_mean.clone()
    found = evaluate(model, loader)
    assert 0 <= found["accuracy"] <= 1
    assert model.training
    assert model.drop.training
    assert not model.norm.training
    assert model.norm.running_mean.equal(running)
    assert rng.capture()["torch"].equal(random_before["torch"])
    inputs, targets = images
    with torch.no_grad():
        expected = (model.eval()(inputs).argmax(1) == targets).float().mean().item()
    assert found["accuracy"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="empty loader"):
        evaluate(model, [])


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [
        ("CosineAnnealingLR", 0.1 * (1 + np.cos(np.pi / 12)) / 2, 0.0),
        ({"name": "MultiStepLR", "milestones": [1], "every": "epoch"}, 0.1, 0.01),
        ({"name": "StepLR", "step_size": 6}, 0.1, 0.001),
        (None, 0.1, 0.1),
    ],
)
def test_schedules_of_torch_by_name(net, loader, schedule, first, last) -> None:
    rates = []

    class Rates:
        @hookimpl
        def kdx_step_end(self, run):
            rates.append(run.learning_rate)

    kdx.fit(
        kdx.Supervised(net()),
        loader,
        epochs=2,
        optimizer={"name": "SGD", "lr": 0.1},
        schedule=schedule,
        observers=[Rates()],
    )
    assert rates[0] == pytest.approx(first)
    assert rates[-1] == pytest.approx(last, abs=1e-12)
    assert len(rates) == 12


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"optimizer": "Adamm"}, UnknownNameError, "no optimizer named 'Adamm'; did you mean 'Adam"),
        ({"optimizer": {"name": "SGD", "lrr": 1}}, TypeError, "SGD has no option 'lrr'; did you mean 'lr'"),
        ({"optimizer": {"lr": 1}}, ValueError, r"optimizer: expected \{name: ..., option: value\}, got \{'lr': 1\}"),
        ({"schedule": "CosineLR"}, UnknownNameError, "no schedule named 'CosineLR'"),
        ({"schedule": {"name": "StepLR", "step_size": 1, "every": "day"}}, ValueError, "every must be 'step' or"),
        ({"epochs": 0}, ValueError, "epochs must be an integer >= 1, got 0"),
        ({"epochs": True}, TypeError, "epochs must be an integer >= 1, got True"),
        ({"steps": -1}, ValueError, "steps must be an integer >= 1, got -1"),
        ({"accumulate": 1.5}, TypeError, "accumulate must be an integer"),
        ({"accumulate": True}, TypeError, "accumulate must be an integer"),
        ({"clip_grad_norm": 0.0}, ValueError, "clip_grad_norm must be > 0 and finite, got 0.0; None clips nothing"),
        ({"clip_grad_norm": float("nan")}, ValueError, "clip_grad_norm must be > 0 and finite, got nan"),
        ({"clip_grad_norm": True}, TypeError, "clip_grad_norm must be > 0 and finite, got True"),
        ({"log_every": 0}, ValueError, "log_every must be an integer >= 1, got 0"),
        ({"log_every": 1.5}, TypeError, "log_every must be an integer >= 1, got 1.5"),
        ({"log_gradients": 0}, ValueError, "log_gradients must be an integer >= 1, got 0; None measures nothing"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be an integer >= 1, got 0"),
        ({"checkpoint_every": -2}, ValueError, "checkpoint_every must be an integer >= 1, got -2"),
        ({"seed": -1}, ValueError, "seed must be an integer >= 0, got -1"),
        ({"seed": 1.5}, TypeError, "seed must be an integer >= 0, got 1.5"),
        ({"mixed_precision": "half"}, ValueError, "mixed_precision must be 'no', 'bf16' or 'fp16', got 'half'"),
        (
            {"mixed_precision": "fp16", "device": "cpu"},
            ValueError,
            "mixed_precision='fp16' needs a GPU: .* take 'bf16', which a CPU computes in, or 'no'",
        ),
        *(
            ({"optimizer": {"name": "SGD", "lr": rate}}, error, f"optimizer SGD: lr must be .* got {rate}")
            for rate, error in (
                (0, ValueError),
                (float("nan"), ValueError),
                (float("inf"), ValueError),
                (True, TypeError),
            )
        ),
        (
            {"optimizer": torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)},
            ValueError,
            "optimizer SGD has no parameter that Supervised trains, so nothing would be learned; build it from those",
        ),
        ({"device": "gpu"}, ValueError, "device must be 'auto' or 'cpu'"),
        ({"resume": True}, ValueError, "resume needs the folder"),
        ({"evaluate": [], "epochs": 1}, ValueError, "empty loader"),
    ],
)
def test_bad_arguments_name_what_was_expected(net, loader, options, error, message) -> None:
    with pytest.raises(error, match=message):
        kdx.fit(kdx.Supervised(net()), loader, **options)


def test_a_frozen_student_is_refused_by_name(net, loader) -> None:
    message = r"Supervised trains nothing: every parameter of student is frozen \(requires_grad=False\); unfreeze what"
    with pytest.raises(ValueError, match=message):
        kdx.fit(kdx.Supervised(net().requires_grad_(False)), loader, device="cpu")
    offline = kdx.Offline(net().requires_grad_(False), net(), knowledge={"kd": kdx.SoftTargets(4.0)})
    with pytest.raises(ValueError, match="Offline trains nothing: every parameter of student is frozen"):
        kdx.fit(offline, loader, device="cpu")


def test_a_student_without_parameters_is_refused_by_name(loader) -> None:
    with pytest.raises(ValueError, match="Supervised trains nothing: student has no parameters; give a model that has"):
        kdx.fit(kdx.Supervised(torch.nn.Flatten()), loader, device="cpu")


@pytest.mark.parametrize("schedule", [None, {"name": "LinearLR", "start_factor": 0.1}])
def test_an_optimizer_whose_rate_a_schedule_has_lowered_to_zero_is_taken(net, loader, schedule) -> None:
    student = net()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step > 0))
    assert optimizer.param_groups[0]["lr"] == 0
    kdx.fit(kdx.Supervised(student), loader, steps=1, optimizer=optimizer, schedule=schedule, device="cpu")


class Late(kdx.Knowledge):
    """Makes its layer in the first forward pass instead of in setup."""

    def __init__(self) -> None:
        super().__init__()
        self.layer: torch.nn.Module | None = None

    def forward(self, student, teacher, batch):
        if self.layer is None:
            self.layer = torch.nn.Linear(student.logits.shape[1], teacher.logits.shape[1])
        return (self.layer(student.logits) - teacher.logits).square().mean()


def test_parameters_that_appear_after_the_optimizer_was_built_are_an_error(net, loader) -> None:
    scheme = kdx.Offline(net(), net(), knowledge={"late": Late()})
    message = r"'knowledge.late.layer.weight' appeared in the first step.*no optimizer trains it; build it in setup"
    with pytest.raises(RuntimeError, match=message):
        kdx.fit(scheme, loader, epochs=1, device="cpu")


def test_an_optimizer_may_train_a_part_of_the_parameters(net, loader) -> None:
    scheme = kdx.Supervised(net())
    first = next(scheme.parameters())
    others = [parameter.clone() for parameter in list(scheme.parameters())[1:]]
    kdx.fit(scheme, loader, epochs=1, device="cpu", optimizer=torch.optim.SGD([first], lr=0.1))
    assert all(one.equal(other) for one, other in zip(list(scheme.parameters())[1:], others, strict=True))


def test_select_names_the_metrics_there_are(net, loader) -> None:
    with pytest.raises(ValueError, match=r"select='f1' is no metric of the evaluation; known are: accuracy"):
        kdx.fit(kdx.Supervised(net()), loader, evaluate=loader, select="f1")


@pytest.mark.slow
def test_compile_trains_to_the_same_weights(net, images) -> None:
    def train(compile: bool) -> dict[str, torch.Tensor]:
        scheme = distil(net)
        scheme.student.drop.p = 0.0
        kdx.fit(scheme, DataLoader(TensorDataset(*images), 16), steps=3, compile=compile, optimizer="SGD")
        return weights(scheme)

    plain, compiled = train(False), train(True)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5, msg=name)
