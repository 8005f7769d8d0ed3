"""CS-KD: a sample learns from the prediction of another one of its class."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdx
from kdx.datasets import SameClassPairs, View
from kdx.schemes.cs_kd import CSKD


@pytest.fixture
def pairs(images) -> kdx.Batch:
    inputs, targets = images
    rows = torch.tensor([0, 1, 2, 3, 6, 7, 5, 0])
    return kdx.Batch(inputs[rows].double(), targets[rows], rows)


def test_the_terms_are_those_of_the_paper_and_only_the_first_half_learns(net, pairs) -> None:
    student = net().double()
    student.drop.p = 0.0
    scheme = CSKD(student, task=(0.5, F.cross_entropy), temperature=2.0, weight=0.3)
    inputs = pairs.inputs.clone().requires_grad_()
    losses = scheme(pairs._replace(inputs=inputs))
    own = copy.deepcopy(student).train()
    z, partner = own(inputs[:4]), own(inputs[4:])  # each half normalised by itself
    p, q = (partner / 2).softmax(1), (z / 2).softmax(1)
    expected = {
        "task": 0.5 * F.cross_entropy(z, pairs.targets[:4]),
        "kd": 0.3 * 4 * (p * (p / q).log()).sum(1).mean(),
    }
    assert losses.terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses.terms[name], value, rtol=1e-10, atol=1e-12)
    gradient = torch.autograd.grad(losses.total, inputs)[0]
    assert gradient[4:].eq(0).all()
    assert gradient[:4].abs().sum() > 0


def test_defaults_are_those_of_the_authors() -> None:
    scheme = CSKD(nn.Linear(3, 2))
    assert scheme.weights == {"kd": 1.0}
    assert scheme.components["kd"].temperature == 4.0


def test_pairs_of_two_classes_odd_batches_and_missing_labels_are_refused(net, pairs) -> None:
    scheme = CSKD(net().double())
    wrong = pairs.targets.clone()
    wrong[6] = 1
    with pytest.raises(
        ValueError, match=r"rows 2 and 6 have classes \(2, 1\), not one\. Give the loader batch_sampler"
    ):
        scheme(pairs._replace(targets=wrong))
    with pytest.raises(ValueError, match=r"got 7 rows\. Give the loader batch_sampler"):
        scheme(kdx.Batch(pairs.inputs[:7], pairs.targets[:7]))
    with pytest.raises(ValueError, match="needs their labels"):
        scheme(kdx.Batch(pairs.inputs))


@pytest.mark.parametrize("targets", [torch.zeros(2, 4, 4, dtype=torch.int64), torch.ones(2, 1)])
def test_targets_that_are_no_class_of_a_sample_are_refused(targets) -> None:
    scheme = CSKD(nn.Conv2d(1, 3, 1), task=None)
    with pytest.raises(ValueError, match=r"one integer for each sample, got torch.*; soft labels, pixels and tokens"):
        scheme(kdx.Batch(torch.randn(2, 1, 4, 4), targets))


def test_it_trains_on_the_sampler_with_any_knowledge_and_inputs_by_name(net, images) -> None:
    inputs, targets = images
    hidden = targets.clone()
    hidden[::5] = -100
    view = View(TensorDataset(inputs, targets), targets=hidden)
    loader = DataLoader(view, batch_sampler=SameClassPairs(hidden, 8))
    knowledge = {"hint": kdx.Hint(student="conv", teacher="conv"), "kd": kdx.make("knowledge", "dist")}
    scheme = CSKD(net(), knowledge=knowledge)
    run = kdx.fit(scheme, loader, epochs=2, device="cpu")
    assert run.step == 2 * 10  # 76 labelled rows

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x, scale):
            return self.fc(x * scale)

    named = {"x": torch.randn(4, 3), "scale": torch.ones(4, 1), "labels": torch.tensor([0, 1, 0, 1])}
    by_name = CSKD(Named())
    by_place = kdx.Batch((named["x"], named["scale"]), named["labels"])
    assert by_name(named).total.equal(by_name(by_place).total)
