"""The first stage of AB touches the layers up to the last guided one and nothing else, and a plan goes on from it."""

from __future__ import annotations

import copy

import torch
from torch import nn

import kdx
from kdx.assistants import BoundariesThenDistil
from kdx.knowledge.functional import activation_boundaries
from kdx.ref import Ref


class Net(nn.Module):
    """Three stages with BatchNorm before each ReLU, none of which works in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for k, inputs in enumerate((1, width, width), start=1):
            self.add_module(f"conv{k}", nn.Conv2d(inputs, width, 3, padding=1))
            self.add_module(f"norm{k}", nn.BatchNorm2d(width))
        self.fc = nn.Linear(width, 3)

    def forward(self, x):
        for k in (1, 2, 3):
            x = self.get_submodule(f"norm{k}")(self.get_submodule(f"conv{k}")(x)).relu()
        return self.fc(x.mean((2, 3)))


LAYERS = {"student_layers": ["norm1", "norm2"], "teacher_layers": ["norm1", "norm2"]}


def nets():
    torch.manual_seed(0)
    return Net(4), Net(6)


def data():
    torch.manual_seed(1)
    return [(torch.randn(8, 1, 6, 6), torch.randint(3, (8,))) for _ in range(4)]


def test_it_moves_what_comes_before_the_last_guided_layer_and_nothing_after_it():
    student, teacher = nets()
    before, taught = copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())
    scheme = kdx.make("scheme", "boundary-stage", student, teacher, **LAYERS)
    options = {"name": "SGD", "lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    kdx.fit(scheme, data(), epochs=2, device="cpu", optimizer=options)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(("conv3.", "norm3.", "fc.")), name
    assert all(torch.equal(value, taught[name]) for name, value in teacher.state_dict().items())
    assert student.norm3.training
    waiting = {name for name, _ in scheme.named_parameters()} - set(scheme._ddp_params_and_buffers_to_ignore)
    assert not any(name.startswith(("student.conv3", "student.fc")) for name in waiting)
    assert {name for name in waiting if name.startswith("student.")} == {
        f"student.{name}" for name, _ in student.named_parameters() if not name.startswith(("conv3", "norm3", "fc"))
    }


def test_its_total_is_the_weighted_loss_of_both_layers_without_labels():
    student, teacher = nets()
    scheme = kdx.make("scheme", "boundary-stage", student, teacher, weight=0.5, **LAYERS)
    x = data()[0][0]
    scheme.setup(kdx.Batch(x))
    losses = scheme.eval()(kdx.Batch(x))  # no targets
    first, second = scheme.knowledge["ab"].connectors
    seen = {}
    for side, net in (("s", student), ("t", teacher)):
        h = net.norm1(net.conv1(x))
        seen[side] = h, net.norm2(net.conv2(h.relu()))
    (s1, s2), (t1, t2) = seen["s"], seen["t"]
    wanted = activation_boundaries(first(s1), t1) / 2 + activation_boundaries(second(s2), t2)
    torch.testing.assert_close(losses.total, 0.5 * wanted)
    assert list(losses.terms) == ["ab"]


def test_the_plan_has_no_task_in_stage_one_and_starts_stage_two_from_it():
    plan = BoundariesThenDistil("a", "b", train={"epochs": 3}, weight=0.1).plan(Ref("resnet"), Ref("convnet"))
    first, second = plan
    assert first.scheme == Ref("boundary-stage", student_layers=["a"], teacher_layers=["b"], weight=0.1, margin=1.0)
    assert (first.train, first.select, first.teachers) == ({"epochs": 3}, False, ("teacher",))
    assert (second.start, second.scheme, second.teachers) == ("boundaries", None, ("teacher",))
