"""Snapshot distillation: the end of one learning-rate cycle teaches the next one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import kdx
from kdx.hookspecs import hookimpl
from kdx.schemes.snapshot_distillation import SnapshotDistillation


class Watch:
    """Writes down the learning rate, the terms and the student of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.terms: list[set[str]] = []
        self.students: list[dict[str, torch.Tensor]] = []

    @hookimpl
    def kdx_step_end(self, run, losses) -> None:
        self.rates.append(run.learning_rate)
        self.terms.append(set(losses.terms))
        self.students.append({name: value.clone() for name, value in run.scheme.student.state_dict().items()})


def test_each_cycle_is_taught_by_the_end_of_the_last_at_a_learning_rate_that_starts_anew(net, loader) -> None:
    scheme = SnapshotDistillation(net(), cycle=2)
    watch = Watch()
    schedule = {"name": "CosineAnnealingWarmRestarts", "T_0": 2, "every": "epoch"}
    kdx.fit(scheme, loader, epochs=6, schedule=schedule, optimizer={"name": "SGD", "lr": 0.1}, observers=[watch])
    per_epoch = [watch.rates[6 * epoch] for epoch in range(6)]
    assert per_epoch == pytest.approx([0.1, 0.05] * 3)
    assert watch.terms == [{"task"}] * 12 + [{"task", "kd"}] * 24
    teacher = scheme.teacher.picture.state_dict()
    end_of_second_cycle = watch.students[6 * 4 - 1]
    assert all(value.equal(end_of_second_cycle[name]) for name, value in teacher.items())
    assert not teacher["conv.weight"].equal(scheme.student.conv.weight)


def test_value_and_defaults(net, batch) -> None:
    scheme = SnapshotDistillation(net().double(), cycle=1).double().eval()
    assert scheme.weights == {"kd": 1.0}
    assert scheme.components["kd"].temperature == 2.0
    batch = batch._replace(inputs=batch.inputs.double())
    scheme.epoch_start(0, 2)
    old = scheme.student(batch.inputs).detach()
    scheme.epoch_start(1, 2)
    with torch.no_grad():
        scheme.student.fc.weight.mul_(2.0)
    z = scheme.student(batch.inputs)
    p, q = (old / 2).softmax(1), (z / 2).softmax(1)
    losses = scheme(batch)
    torch.testing.assert_close(losses.terms["kd"], 4 * (p * (p / q).log()).sum(1).mean(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(losses.terms["task"], F.cross_entropy(z, batch.targets))
    losses.total.backward()
    assert all(parameter.grad is None for parameter in scheme.teacher.parameters())
    with pytest.raises(ValueError, match="cycle must be an integer >= 1, got 0; it is a number of epochs"):
        SnapshotDistillation(net(), cycle=0)
