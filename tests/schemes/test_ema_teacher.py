"""Mean teacher: what the average is after each step, and that it teaches in evaluation mode without gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import kdx
from kdx.hookspecs import hookimpl
from kdx.schemes.ema_teacher import EmaTeacher


class Watch:
    def __init__(self) -> None:
        self.students: list[dict[str, torch.Tensor]] = []

    @hookimpl
    def kdx_step_end(self, run) -> None:
        state = run.scheme.student.state_dict()
        self.students.append({name: value.double().clone() for name, value in state.items()})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_follows_every_optimizer_step_statistics_of_batchnorm_included(net, images, accumulate) -> None:
    scheme = EmaTeacher(net(), decay=0.75)
    start = {name: value.double().clone() for name, value in scheme.student.state_dict().items()}
    watch = Watch()
    loader = DataLoader(TensorDataset(*images), 16)
    kdx.fit(scheme, loader, epochs=1, accumulate=accumulate, observers=[watch], optimizer="SGD", device="cpu")
    assert len(watch.students) == 6 // accumulate
    for name, found in scheme.teacher.average.state_dict().items():
        mean = start[name]
        for step, student in enumerate(watch.students, start=1):
            decay = min(0.75, 1 - 1 / (step + 1))
            mean = decay * mean + (1 - decay) * student[name]
        if name == "norm.num_batches_tracked":
            assert found.item() == 6
        else:
            torch.testing.assert_close(found.double(), mean, rtol=1e-5, atol=1e-6)


def test_the_first_averages_are_plain_means_of_the_initial_and_every_later_student(net, loader) -> None:
    scheme = EmaTeacher(net(), decay=0.999)
    weights, watch = [scheme.student.fc.weight.detach().double().clone()], Watch()
    kdx.fit(scheme, loader, epochs=1, observers=[watch], optimizer="SGD", device="cpu")
    weights += [student["fc.weight"] for student in watch.students]
    assert len(weights) > 3
    torch.testing.assert_close(
        scheme.teacher.average.fc.weight.double(), torch.stack(weights).mean(0), rtol=1e-5, atol=1e-6
    )


def test_value_defaults_and_who_gets_a_gradient(net, batch) -> None:
    scheme = EmaTeacher(net().double(), task=(0.5, F.cross_entropy)).double()
    assert scheme.weights == {"kd": 1.0}
    assert (scheme.components["kd"].temperature, scheme.teacher.decay) == (1.0, 0.999)
    batch = batch._replace(inputs=batch.inputs.double())
    with torch.no_grad():
        scheme.student.fc.weight.mul_(2.0)
    scheme.student.eval()  # no dropout, for the oracle; the average is in this mode anyway
    z, old = scheme.student(batch.inputs), scheme.teacher.average(batch.inputs)
    p, q = old.softmax(1), z.softmax(1)
    losses = scheme(batch)
    torch.testing.assert_close(losses.terms["kd"], (p * (p / q).log()).sum(1).mean(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(losses.terms["task"], 0.5 * F.cross_entropy(z, batch.targets))
    losses.total.backward()
    trained = {id(parameter) for parameter in scheme.parameters() if parameter.requires_grad}
    assert trained == {id(parameter) for parameter in scheme.student.parameters()}
    assert all(parameter.grad is None for parameter in scheme.teacher.parameters())


def test_it_learns_from_rows_without_a_label_and_a_weight_may_grow(net, images) -> None:
    hidden = torch.full_like(images[1], -100)
    hidden[:6] = images[1][:6]
    ramp = {"kd": (kdx.schemes.weights.Warmup(1.0, steps=6), kdx.SoftTargets(1.0))}
    scheme = EmaTeacher(net(), knowledge=ramp, decay=0.9)
    loader = DataLoader(TensorDataset(images[0], hidden), 16)
    kdx.fit(scheme, loader, epochs=2, device="cpu")
    scheme.train()
    terms = scheme(kdx.Batch(images[0][16:32], hidden[16:32])).terms
    assert terms["task"].item() == 0.0
    assert terms["kd"].item() > 0.0
    assert scheme.weight("kd").item() == 1.0
