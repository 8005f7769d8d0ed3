"""Reverse KL and JSD as components: value against numpy, limits, and that they are the op."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from kdx.knowledge.jsd import JSD, jsd
from kdx.knowledge.reverse_kl import ReverseKL, reverse_kl
from kdx.ops import softmax_kl


def probabilities(z, temperature):
    z = z / temperature
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def kl(p, q):
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q), 0).sum(axis=1).mean()


@pytest.mark.parametrize("shape", [(7, 10), (1, 10), (5, 2)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_values(random, shape, temperature):
    s, t = random(*shape, seed=1, std=3.0), random(*shape, seed=2, std=3.0)
    q, p = probabilities(s.numpy(), temperature), probabilities(t.numpy(), temperature)
    scale = temperature**2
    assert reverse_kl(s, t, temperature=temperature).item() == pytest.approx(scale * kl(q, p), rel=1e-10)
    for beta in (0.5, 0.1):
        m = beta * p + (1 - beta) * q
        expected = scale * (beta * kl(p, m) + (1 - beta) * kl(q, m))
        assert jsd(s, t, temperature=temperature, beta=beta).item() == pytest.approx(expected, rel=1e-10)


def test_jsd_tends_to_forward_and_reverse_kl_at_its_ends(random):
    s, t, small = random(6, 8, seed=1), random(6, 8, seed=2), 1e-6
    torch.testing.assert_close(jsd(s, t, beta=small) / small, softmax_kl(s, t), rtol=1e-4, atol=0)
    torch.testing.assert_close(jsd(s, t, beta=1 - small) / small, reverse_kl(s, t), rtol=1e-4, atol=0)


def test_jsd_is_bounded_and_symmetric_and_the_kls_are_not(random):
    s = torch.tensor([[400.0, 0.0]], dtype=torch.float64)
    t = torch.tensor([[0.0, 400.0]], dtype=torch.float64)
    assert jsd(s, t).item() == pytest.approx(np.log(2), rel=1e-12)
    assert reverse_kl(s, t).item() == pytest.approx(400, rel=1e-12)
    a, b = random(6, 8, seed=1), random(6, 8, seed=2)
    torch.testing.assert_close(jsd(a, b), jsd(b, a))
    torch.testing.assert_close(reverse_kl(a, b), softmax_kl(b, a))


def test_the_gradient_is_finite_where_the_softmax_saturates():
    for loss in (reverse_kl, jsd):
        s = torch.tensor([[400.0, 0.0]], requires_grad=True)
        loss(s, torch.tensor([[0.0, 400.0]])).backward()
        assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("loss", [reverse_kl, jsd])
def test_gradients(random, loss):
    s, t = random(4, 5, seed=1).requires_grad_(), random(4, 5, seed=2).requires_grad_()
    assert gradcheck(lambda a, b: loss(a, b, temperature=2.0), (s, t))


@pytest.mark.parametrize("component", [ReverseKL(2.0), JSD(2.0, beta=0.3)], ids=repr)
def test_equal_logits_give_zero_loss_and_zero_gradient(random, loss_and_gradients, component):
    s = random(4, 5, std=3.0)
    loss, gradients = loss_and_gradients(component, {"logits": s}, {"logits": s}, None)
    assert loss == 0
    assert (gradients["logits"] == 0).all()


@pytest.mark.parametrize("component", [ReverseKL(2.0), JSD(2.0, beta=0.3)], ids=repr)
def test_the_components_stand_what_all_do(random, check_component, component):
    check_component(component, {"logits": random(6, 5, seed=1)}, {"logits": random(6, 5, seed=2)})


def test_the_students_mode_is_sought_by_reverse_kl_and_all_modes_by_forward_kl():
    """Two teacher modes, a student that can only choose where to put its mass."""
    teacher = torch.tensor([[4.0, 0.0, 4.0]], dtype=torch.float64)
    one, both = torch.tensor([[4.0, 0.0, -4.0]]).double(), torch.tensor([[1.0, 1.0, 1.0]]).double()
    assert reverse_kl(one, teacher) < reverse_kl(both, teacher)
    assert softmax_kl(one, teacher) > softmax_kl(both, teacher)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="beta must be > 0 and < 1, got 1; the ends are soft-targets"):
        JSD(beta=1)
    for component in (ReverseKL, JSD):
        with pytest.raises(ValueError, match="temperature must be > 0 and finite, got -1"):
            component(-1)
