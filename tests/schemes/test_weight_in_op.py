"""The weight of a term goes into the op, which multiplies by it at no cost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kdx
from kdx.knowledge import JSD, Divergence, ReverseKL, SoftTargets


def scheme(knowledge):
    torch.manual_seed(0)
    return kdx.Offline(nn.Linear(5, 4), nn.Linear(5, 4), task=None, knowledge=knowledge)


class Halved(SoftTargets):
    """Has a loss of its own."""

    def compare(self, outputs):
        return super().compare(outputs) / 2


@pytest.mark.parametrize(
    "component", [SoftTargets(2.0), ReverseKL(2.0), JSD(), Halved(2.0)], ids=lambda c: type(c).__name__
)
@pytest.mark.parametrize("weight", [0.7, kdx.schemes.Warmup(0.7, steps=1)], ids=["number", "schedule"])
def test_terms_and_gradients_are_those_of_the_weighted_loss(component, weight):
    batch = (torch.randn(6, 5), torch.zeros(6, dtype=torch.int64))
    plain, weighted = scheme({"kd": component}), scheme({"kd": (weight, component)})
    weighted.advance(5, 10)
    a, b = plain(batch), weighted(batch)
    torch.testing.assert_close(b.terms["kd"], 0.7 * a.terms["kd"])
    a.total.backward()
    b.total.backward()
    torch.testing.assert_close(weighted.student.weight.grad, 0.7 * plain.student.weight.grad)


def test_a_subclass_with_a_loss_of_its_own_is_not_asked_for_weights():
    assert SoftTargets.takes_weight
    assert not Halved.takes_weight
    assert isinstance(Halved(2.0), Divergence)


def test_a_scheme_keeps_one_tensor_of_logits_for_the_divergence():
    student, teacher = nn.Linear(5, 4000, bias=False), nn.Linear(5, 4000, bias=False)
    distil = kdx.Offline(student, teacher, task=None, knowledge={"kd": (0.5, SoftTargets(2.0))})
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    batch = (torch.randn(64, 5), torch.zeros(64, dtype=torch.int64))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        losses = distil(batch)
    assert sum(size >= 64 * 4000 * 4 for size in kept.values()) == 1
    losses.total.backward()
