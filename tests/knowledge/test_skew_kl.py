"""Skewed KL as a component: its definition, its limits and bound, and outputs that are held as head or few classes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

import kdx
from kdx.captured import Captured
from kdx.knowledge.skew_kl import SkewKL, skew_kl
from kdx.ops import SparseTargets, softmax_kl


def by_definition(s: torch.Tensor, t: torch.Tensor, temperature: float, skew: float, direction: str) -> torch.Tensor:
    q, p = (s / temperature).softmax(1), (t / temperature).softmax(1)
    first, second = (p, q) if direction == "forward" else (q, p)
    mixture = skew * first + (1 - skew) * second
    return temperature**2 * (first * (first.log() - mixture.log())).sum(1).mean()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("skew", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_value_and_gradient_are_those_of_the_definition(random, direction, skew, temperature) -> None:
    s, t = random(7, 10, seed=1, std=3.0).requires_grad_(), random(7, 10, seed=2, std=3.0)
    loss = skew_kl(s, t, temperature=temperature, skew=skew, direction=direction)
    expected = by_definition(s, t, temperature, skew, direction)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (found,), (wanted,) = torch.autograd.grad(loss, s), torch.autograd.grad(expected, s)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-14)
    assert gradcheck(lambda a, b: skew_kl(a, b, skew=skew, direction=direction), (s[:3], t[:3].requires_grad_()))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_without_skew_it_is_the_plain_kl_and_with_it_bounded(random, direction) -> None:
    s, t = random(6, 8, seed=1), random(6, 8, seed=2)
    plain = softmax_kl(s, t, divergence=direction)
    torch.testing.assert_close(skew_kl(s, t, skew=0.0, direction=direction), plain, rtol=0, atol=0)
    s = torch.tensor([[400.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = skew_kl(s, torch.tensor([[0.0, 400.0]], dtype=torch.float64), direction=direction)
    assert loss.item() == pytest.approx(-math.log(0.1), rel=1e-12)
    loss.backward()
    assert s.grad.abs().max() < 10


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_hidden_states_with_a_head_and_few_classes_give_what_their_logits_give(random, direction) -> None:
    hidden, weight = random(2, 3, 4, seed=1).requires_grad_(), random(9, 4, seed=2)
    held, teacher = kdx.LinearLogits(hidden, weight), random(2, 3, 9, seed=3)
    component = SkewKL(skew=0.2, direction=direction)
    dense = component(Captured({"logits": held.dense()}), Captured({"logits": teacher}), None)
    found = component(Captured({}, held={"logits": held}), Captured({"logits": teacher}), None)
    torch.testing.assert_close(found, dense, rtol=1e-11, atol=0)
    log_p, ids = teacher.log_softmax(2).sort(2, descending=True)
    every = Captured({}, held={"logits": SparseTargets(ids, log_p)})
    torch.testing.assert_close(component(Captured({"logits": held.dense()}), every, None), dense, rtol=1e-7, atol=0)


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="skew"):
        SkewKL(skew=1.0)
    with pytest.raises(ValueError, match="direction"):
        SkewKL(direction="backward")
    with pytest.raises(ValueError, match="tail"):
        SkewKL(tail="drop")
