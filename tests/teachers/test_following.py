"""Teachers that follow the student: its average, its earlier epochs, its deeper layers, and live ones."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import kdx
from kdx.errors import Interrupted
from kdx.hookspecs import hookimpl
from kdx.teachers import EMA, Deeper, Ensemble, Frozen, Live, Snapshot

SOURCES = {
    "ema": lambda student: EMA(student, decay=0.9),
    "snapshot": Snapshot,
    "deeper": Deeper,
    "ensemble": lambda student: Ensemble({"mean": EMA(student), "last": Snapshot(student)}),
}
every_source = pytest.mark.parametrize("source", SOURCES)


class StopAt:
    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def kdx_step_end(self, step) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def build(net, source: str) -> kdx.Offline:
    torch.manual_seed(0)
    student = net(4)
    name = "mean/conv" if source == "ensemble" else "conv"
    knowledge = {"kd": kdx.SoftTargets(2.0), "hint": (0.1, kdx.Hint(student="norm", teacher=name))}
    return kdx.Offline(student, SOURCES[source](student), knowledge=knowledge)


@every_source
def test_a_run_stopped_anywhere_ends_bitwise_where_the_unbroken_one_ends(net, loader, tmp_path, source) -> None:
    def run(folder: Path, **options) -> kdx.Scheme:
        scheme = build(net, source)
        kdx.fit(scheme, loader, epochs=3, seed=5, device="cpu", folder=folder, **options)
        return scheme

    unbroken = run(tmp_path / "unbroken")
    for stop in (3, 9, 12):  # amid the first and the second epoch, and at the end of the second
        torch.manual_seed(stop)
        with pytest.raises(Interrupted):
            run(tmp_path / "broken", resume=True, observers=[StopAt(stop)])
    resumed = run(tmp_path / "broken", resume=True)
    assert unbroken.teacher.teaches == resumed.teacher.teaches
    for key, value in unbroken.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert resumed.state_dict()[key].equal(value), key
    exported = load_file(tmp_path / "broken" / "student.safetensors")
    assert exported.keys() == net(4).state_dict().keys()


@every_source
def test_a_step_trains_the_student_alone(net, batch, source) -> None:
    scheme = build(net, source)
    scheme.setup(batch)
    scheme.epoch_start(0, 2)
    scheme.epoch_start(1, 2)
    held = {name: value.clone() for name, value in scheme.teacher.state_dict().items() if torch.is_tensor(value)}
    trained = {name for name, parameter in scheme.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"student", "knowledge"}
    scheme.train()
    terms = scheme(batch).terms
    assert terms.keys() == {"task", "kd", "hint"}
    sum(terms.values()).backward()
    torch.optim.SGD([p for p in scheme.parameters() if p.requires_grad], lr=0.1).step()
    for name, value in held.items():
        assert scheme.teacher.state_dict()[name].equal(value), name
    assert all(not part.training for part in scheme.teacher.modules() if isinstance(part, torch.nn.BatchNorm2d))


def test_the_average_is_what_its_formula_says(net) -> None:
    student = net(4)
    teacher = EMA(student, decay=0.75)
    expected = student.fc.weight.detach().double().clone()
    running = student.norm.running_var.double().clone()
    for step in range(1, 5):
        with torch.no_grad():
            student.fc.weight.add_(torch.randn_like(student.fc.weight))
            student.norm.running_var.mul_(1.5)
            student.norm.num_batches_tracked.add_(1)
        teacher.step_end(step, 4)
        decay = min(0.75, 1 - 1 / (step + 1))  # 1/2, 2/3, 3/4, 3/4
        expected = decay * expected + (1 - decay) * student.fc.weight.double()
        running = decay * running + (1 - decay) * student.norm.running_var.double()
    torch.testing.assert_close(teacher.average.fc.weight.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(teacher.average.norm.running_var.double(), running, rtol=1e-5, atol=1e-6)
    assert teacher.average.norm.num_batches_tracked == 4


def test_tied_weights_are_averaged_once_and_a_module_may_have_extra_state() -> None:
    class Tied(torch.nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2, bias=False)
            self.again = torch.nn.Linear(2, 2, bias=False)
            self.again.weight = self.weight

        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 0}

        def set_extra_state(self, state: dict[str, int]) -> None: ...

    student = Tied()
    teacher = EMA(student, decay=0.75, warm_up=False)
    start = student.weight.detach().clone()
    with torch.no_grad():
        student.weight.add_(4.0)
    teacher.step_end(1, 1)
    torch.testing.assert_close(teacher.average.again.weight, start + 1.0)


def test_a_snapshot_teaches_from_the_first_picture_to_the_next(net, batch) -> None:
    student = net(4)
    scheme = kdx.Offline(student, Snapshot(student, every=2), knowledge={"kd": kdx.SoftTargets()})
    seen = []
    for epoch in range(6):
        scheme.epoch_start(epoch, 6)
        seen.append("kd" in scheme(batch).terms)
        taken = scheme.teacher.picture.fc.bias.clone()
        with torch.no_grad():
            student.fc.bias.add_(1.0)
        if epoch in (2, 4):
            assert taken.equal(student.fc.bias - 1.0)
        if epoch in (3, 5):
            assert taken.equal(student.fc.bias - 2.0)
    assert seen == [False, False, True, True, True, True]
    scheme.epoch_start(0, 6)  # another run of the same object
    assert not scheme.teacher.teaches


def test_deeper_layers_teach_in_the_students_own_pass_and_get_no_gradient(net, batch) -> None:
    student = net(4)
    scheme = kdx.Offline(student, Deeper(student), task=None, knowledge={"h": kdx.Hint(student="conv", teacher="norm")})
    passes = []
    student.register_forward_hook(lambda *_: passes.append(1))
    scheme.setup(batch)
    passes.clear()
    scheme.train()
    scheme(batch).total.backward()
    assert passes == [1]
    assert student.conv.weight.grad is not None
    assert student.norm.weight.grad is None  # the teacher's layer
    with pytest.raises(ValueError, match="give both the same module"):
        kdx.Offline(net(4), Deeper(net(4)))


def test_a_live_teacher_gives_its_graph_only_when_asked(net, batch) -> None:
    teacher = Live(net(4))
    assert not teacher(batch).logits.requires_grad
    assert teacher.captured(batch).logits.requires_grad
    assert len(list(teacher.parameters())) == len(list(net(4).parameters()))
    teacher.train()
    assert teacher.model.training


@pytest.mark.parametrize(
    ("build", "saved", "trained"),
    [
        (Frozen, False, False),
        (Live, True, True),
        (EMA, True, False),
        (Snapshot, True, False),
        (Deeper, False, False),
    ],
)
def test_checkpoints_hold_teachers_that_move_and_optimizers_those_that_learn(net, build, saved, trained) -> None:
    teacher = build(net(4))
    tensors = [value for value in teacher.state_dict().values() if torch.is_tensor(value)]
    assert saved is bool(tensors)
    assert trained is any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda model: EMA(model, decay=1.0), "decay must be >= 0 and < 1, got 1.0"),
        (lambda model: Snapshot(model, every=0), "every must be an integer >= 1, got 0; it is a number of epochs"),
    ],
)
def test_bad_arguments_say_what_was_expected(net, build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(net(4))
