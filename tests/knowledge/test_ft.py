"""Factor transfer against an oracle: norms per sample, the translator, and factors of zeros."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kdx
from kdx.capture import Captured
from kdx.errors import CaptureError
from kdx.knowledge import FT
from kdx.knowledge.ft import factor_transfer


def oracle(student, teacher, variant):
    rows = []
    for a, b in zip(np.asarray(student), np.asarray(teacher), strict=True):
        s, t = a.ravel(), b.ravel()
        rows.append(np.abs(s / np.sqrt((s**2).sum()) - t / np.sqrt((t**2).sum())))
    return float(np.mean(rows)) if variant == "code" else float(np.sum(rows)) / len(rows)


@pytest.mark.parametrize("shape", [(3, 4, 3, 2), (1, 2), (2, 5, 7)])
@pytest.mark.parametrize("variant", ["code", "paper"])
def test_it_has_the_value_of_the_oracle(random, shape, variant):
    s, t = random(*shape, seed=1, std=3), random(*shape, seed=2)
    found = factor_transfer(s, t, variant=variant).item()
    assert found == pytest.approx(oracle(s, t, variant), rel=1e-12)


def test_the_gradient_is_right_and_the_length_of_a_factor_plays_no_part(random):
    s, t = random(3, 2, 2, 2, seed=3).requires_grad_(), random(3, 2, 2, 2, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(factor_transfer, (s, t))
    scales = torch.tensor([0.1, 2.0, 50.0], dtype=torch.float64).view(3, 1, 1, 1)
    torch.testing.assert_close(factor_transfer(scales * s, t), factor_transfer(s, t))
    assert factor_transfer(s, 3 * s.detach()).item() == pytest.approx(0, abs=1e-15)


def test_a_factor_of_zeros_and_an_empty_batch_are_finite(random):
    s = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    loss = factor_transfer(s, random(2, 3))
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()
    assert factor_transfer(torch.zeros(0, 3), torch.zeros(0, 3), variant="paper") == 0


def test_the_translator_is_three_convolutions_of_side_3_with_leaky_relus(random):
    s, t = {"a": random(2, 3, 4, 4, seed=1)}, {"paraphraser": random(2, 2, 2, 2, seed=2)}
    component = FT(student="a")
    component.setup(Captured(s), Captured(t))
    x = s["a"].reshape(2, 3, 2, 2, 2, 2).mean((3, 5))
    widths = []
    for layer in component.translators[0][::2]:
        widths.append(tuple(layer.weight.shape[:2]))
        x = torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
        x = torch.where(x > 0, x, 0.1 * x)
    assert widths == [(3, 3), (2, 3), (2, 2)]
    expected = oracle(x.detach(), t["paraphraser"], "code")
    loss = component(Captured(s), Captured(t), None)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    loss.backward()
    assert all(p.grad.abs().max() > 0 for p in component.parameters())


def test_a_teacher_without_a_paraphraser_is_refused_before_training():
    student, teacher = torch.nn.Sequential(torch.nn.Linear(3, 2)), torch.nn.Sequential(torch.nn.Linear(3, 2))
    with pytest.raises(CaptureError, match="knowledge 'ft': tap 'paraphraser' names no module of Sequential"):
        kdx.Offline(student, teacher, knowledge={"ft": FT(student="0")})


def test_ft_passes_every_component_check(random, check_component):
    s, t = {"a": random(3, 4, 4, 4, seed=1)}, {"paraphraser": random(3, 2, 2, 2, seed=2)}
    component = FT(student="a")
    component.setup(Captured(s), Captured(t))
    check_component(component.float(), s, t)
