"""CTKD: the value at its temperature, the reversed gradient, the curriculum, and what is saved."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import kdx
from kdx.capture import Captured
from kdx.knowledge import CTKD
from kdx.knowledge.ctkd import reversed_gradient, tempered_kl


def softmax(z):
    exponent = np.exp(z - z.max())
    return exponent / exponent.sum()


def oracle(student, teacher, temperatures):
    total = 0.0
    for s, t, temperature in zip(student.numpy(), teacher.numpy(), temperatures, strict=True):
        p, q = softmax(t / temperature), softmax(s / temperature)
        total += temperature**2 * (p * np.log(p / q)).sum()
    return total / len(student)


def captured(x):
    return Captured({"logits": x})


def test_at_the_start_it_is_soft_targets_at_15_6(random):
    s, t = random(5, 4, seed=1, std=3), random(5, 4, seed=2, std=3)
    temperature = 1 + 20 / (1 + math.exp(-1))
    found = CTKD()(captured(s), captured(t), None).item()
    assert found == pytest.approx(oracle(s, t, [temperature] * 5), rel=1e-6)  # x is a float32 parameter
    assert found == pytest.approx(kdx.SoftTargets(temperature)(captured(s), captured(t), None).item(), rel=1e-6)


def test_each_row_has_its_own_temperature_where_asked(random):
    s, t = random(5, 4, seed=1, std=3), random(5, 4, seed=2, std=3)
    component = CTKD(per="sample", width=7)
    component.setup(captured(s), captured(t))
    first, _, last = component.network
    rows = torch.cat([t, s], 1)
    x = torch.relu(rows @ first.weight.T + first.bias) @ last.weight.T + last.bias
    temperatures = (1 + 20 / (1 + (-x).exp()))[:, 0].tolist()
    assert len(set(temperatures)) == 5
    assert component(captured(s), captured(t), None).item() == pytest.approx(oracle(s, t, temperatures), rel=1e-10)


def test_the_gradient_of_the_loss_is_right_in_the_logits_and_in_the_temperature(random):
    s, t = random(4, 3, seed=3).requires_grad_(), random(4, 3, seed=4).requires_grad_()
    one = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([[1.5], [2.0], [4.0], [9.0]], dtype=torch.float64, requires_grad=True)
    for temperature in (one, rows):
        assert torch.autograd.gradcheck(lambda a, b, c: tempered_kl(a, b, temperature=c), (s, t, temperature))


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_what_is_learned_climbs_times_the_strength_and_the_student_descends(random, per):
    s, t = random(6, 4, seed=1).requires_grad_(), random(6, 4, seed=2, std=4)
    component = CTKD(per=per).double()
    component.setup(captured(s), captured(t))
    component.double().strength.fill_(0.25)
    learned = list(component.parameters())
    loss = component(captured(s), captured(t), None)
    found = torch.autograd.grad(loss, [s, *learned])
    straight = copy.deepcopy(component)
    straight.strength.fill_(-1.0)
    wanted = torch.autograd.grad(straight(captured(s), captured(t), None), [s, *straight.parameters()])
    torch.testing.assert_close(found[0], wanted[0])
    for one, other in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(one, -0.25 * other)
    plain = sum(x.square().sum() for x in wanted[1:])
    assert plain > 0
    # the student is not taught through what reads its logits
    fixed = component.temperature_of(s, t).detach()
    torch.testing.assert_close(found[0], torch.autograd.grad(tempered_kl(s, t, temperature=fixed), s)[0])


def test_reversing_changes_no_number():
    x = torch.tensor([0.1, -7.3, 1e8], requires_grad=True)
    y = reversed_gradient(x, torch.tensor(0.3))
    assert torch.equal(y, x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.full((3,), -0.3))


def test_the_strength_grows_over_the_first_epochs_and_survives_a_resumed_epoch():
    component = CTKD(epochs=4)
    seen = []
    for epoch in range(6):
        component.epoch_start(epoch, 6)
        seen.append(round(component.strength.item(), 4))
    assert seen == [0.1464, 0.5, 0.8536, 1.0, 1.0, 1.0]
    again = CTKD(epochs=4)
    again.load_state_dict(component.state_dict())
    assert again.strength == 1
    assert round(CTKD(epochs=4).strength.item(), 4) == 0.1464  # that of the first epoch


def test_fit_trains_the_temperature_upwards_in_loss_and_no_part_of_it_is_the_students():
    torch.manual_seed(0)
    student, teacher = nn.Linear(6, 4), nn.Linear(6, 4)
    with torch.no_grad():
        teacher.weight.mul_(8)
    kd = CTKD(epochs=1)
    scheme = kdx.Offline(student, teacher, task=None, knowledge={"kd": kd})
    data = [kdx.Batch(torch.randn(32, 6)) for _ in range(4)]
    frozen = copy.deepcopy(scheme)
    with torch.no_grad():
        x = data[0].inputs
        s, t = student(x), teacher(x)
        slope = torch.func.grad(lambda v: tempered_kl(s, t, temperature=1 + 20 * v.sigmoid()))(torch.tensor(1.0))
    run = kdx.fit(scheme, data, epochs=5, device="cpu", optimizer={"name": "SGD", "lr": 0.05}, schedule=None)
    assert run.step == 20
    moved = kd.x.item() - frozen.knowledge["kd"].x.item()
    assert moved * slope.item() > 0  # against the student
    assert kd.strength == 1
    assert set(student.state_dict()) == {"weight", "bias"}


def test_a_class_of_no_probability_leaves_every_gradient_finite():
    s = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True)
    t = torch.tensor([[3.0, 1.0, -torch.inf]])
    for per in ("batch", "sample"):
        component = CTKD(per=per)
        component.setup(captured(s), captured(t))
        loss = component(captured(s), captured(t), None)
        assert loss.isfinite()
        found = torch.autograd.grad(loss, [s, *component.parameters()])
        assert all(gradient.isfinite().all() for gradient in found)


def test_options_out_of_range_are_refused(random):
    with pytest.raises(ValueError, match="least must be > 0"):
        CTKD(least=0)
    with pytest.raises(ValueError, match="per: there is no 'row'"):
        CTKD(per="row")
    with pytest.raises(RuntimeError, match=r"CTKD has no network yet; call scheme\.setup"):
        CTKD(per="sample")(captured(random(2, 3)), captured(random(2, 3)), None)
