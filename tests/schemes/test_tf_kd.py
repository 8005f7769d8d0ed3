"""Tf-KD against an oracle, and what a virtual teacher needs: labels that are classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import kdx
from kdx.schemes import TfKD
from kdx.schemes.tf_kd import virtual_teacher_kl


def softmax(z):
    exponent = np.exp(z - z.max())
    return exponent / exponent.sum()


def oracle(logits, targets, correct, temperature, variant):
    rows = []
    for z, y in zip(logits.numpy(), targets.tolist(), strict=True):
        if y >= 0:
            p = np.full(len(z), (1 - correct) / (len(z) - 1))
            p[y] = correct
            p = softmax(p / temperature)
            q = softmax(z / temperature if variant == "paper" else z)
            rows.append((p * np.log(p / q)).sum())
    return float(np.mean(rows))


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize(("correct", "temperature"), [(0.99, 20.0), (0.6, 1.0)])
def test_it_has_the_value_of_the_oracle_and_rows_without_a_label_count_for_nothing(variant, correct, temperature):
    z = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (7, 5))).requires_grad_()
    y = torch.tensor([0, 4, -100, 2, 2, -100, 1])
    loss = virtual_teacher_kl(z, y, correct=correct, temperature=temperature, variant=variant)
    assert loss.item() == pytest.approx(oracle(z.detach(), y, correct, temperature, variant), rel=1e-9)
    loss.backward()
    assert z.grad[y < 0].abs().max() == 0
    assert virtual_teacher_kl(z, torch.full((7,), -100)) == 0


def test_the_total_is_the_two_terms_with_their_shares():
    torch.manual_seed(0)
    net = nn.Linear(3, 4).double()
    x, y = torch.randn(6, 3).double(), torch.tensor([0, 1, 2, 3, -100, 0])
    losses = TfKD(net, alpha=0.25, multiplier=10.0, task=(2.0, torch.nn.functional.cross_entropy))((x, y))
    z = net(x).detach()
    ce = -z.log_softmax(1)[torch.arange(6), y.clamp(min=0)][y >= 0].mean()
    assert losses.terms["task"].item() == pytest.approx(0.75 * 2.0 * ce.item())
    assert losses.terms["virtual"].item() == pytest.approx(2.5 * oracle(z, y, 0.99, 20.0, "paper"))
    assert losses.counts["virtual"] == 5


def test_pixels_are_elements_and_their_void_is_left_out():
    z = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    y = torch.tensor([[[0, 1], [2, -100]], [[-100, 1], [0, 0]]])
    scheme = TfKD(nn.Identity(), task=kdx.make("task", "segmentation"), alpha=1.0)
    found = scheme((z, y)).terms["virtual"].item()
    assert found == pytest.approx(oracle(z.movedim(1, -1).reshape(-1, 3), y.flatten(), 0.99, 20.0, "paper"), rel=1e-9)


def test_what_has_no_label_of_one_class_is_refused():
    net = nn.Linear(3, 4)
    with pytest.raises(ValueError, match="needs a task of classes, got outputs of the form 'Bernoulli'"):
        TfKD(net, task=kdx.make("task", "multi-label"))
    with pytest.raises(ValueError, match="needs integer labels, not probabilities"):
        TfKD(net)((torch.zeros(2, 3), torch.full((2, 4), 0.25)))
    with pytest.raises(ValueError, match="tf-kd splits the classes at the label and needs integer labels"):
        TfKD(net, task=None)(kdx.Batch(torch.zeros(2, 3)))
    with pytest.raises(ValueError, match=r"correct: 0\.25 of 4 classes is no more than an equal share"):
        TfKD(net, correct=0.25)((torch.zeros(2, 3), torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="alpha must be >= 0 and <= 1"):
        TfKD(net, alpha=1.5)
