"""Attention transfer against an oracle, and what must not change it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdx.capture import Captured
from kdx.knowledge.attention_transfer import AttentionTransfer, attention_transfer


def oracle(student, teacher, variant):
    def q(feature):
        energy = (np.asarray(feature, np.float64) ** 2).mean(1).reshape(len(feature), -1)
        norm = np.sqrt((energy**2).sum(1, keepdims=True))
        return np.divide(energy, norm, out=np.zeros_like(energy), where=norm > 0)

    difference = q(student) - q(teacher)
    if variant == "code":
        return (difference**2).mean()
    return 0.5 * np.sqrt((difference**2).sum(1)).mean()


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("case", ["random", "zero sample", "duplicates", "one sample", "one pixel", "both zero"])
def test_attention_transfer_has_the_value_of_the_oracle(random, variant, case):
    s, t = random(4, 3, 5, 4, seed=1), random(4, 7, 5, 4, seed=2)
    if case == "zero sample":
        s[1] = 0
        t[2] = 0
    elif case == "duplicates":
        s[:] = s[0].clone()
        t[:] = t[0].clone()
    elif case == "one sample":
        s, t = s[:1], t[:1]
    elif case == "one pixel":
        s, t = s[..., :1, :1], t[..., :1, :1]
    elif case == "both zero":
        s, t = 0 * s, 0 * t
    s.requires_grad_()
    loss = attention_transfer(s, t, variant=variant)
    assert loss.item() == pytest.approx(oracle(s.detach().numpy(), t.numpy(), variant), rel=1e-12, abs=1e-15)
    loss.backward()
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_attention_transfer_passes_every_component_check(random, check_component, variant):
    component = AttentionTransfer(student=("a", "b"), teacher=("a", "b"), variant=variant)
    s = {"a": random(3, 4, 8, 8, seed=1), "b": random(3, 5, 4, 4, seed=2)}
    t = {"a": random(3, 6, 8, 8, seed=3), "b": random(3, 2, 2, 2, seed=4)}
    check_component(component, s, t)
    pooled = s["b"].reshape(3, 5, 2, 2, 2, 2).mean((3, 5))
    expected = oracle(s["a"], t["a"], variant) + oracle(pooled, t["b"], variant)
    assert component(Captured(s), Captured(t), None).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_attention_transfer_gradient_is_right_in_float64(random, variant):
    s, t = random(2, 3, 2, 3, seed=5).requires_grad_(), random(2, 2, 2, 3, seed=6).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: attention_transfer(a, b, variant=variant), (s, t))


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_attention_transfer_ignores_channel_order_and_positive_scale(random, variant):
    s, t = random(3, 4, 4, 4, seed=7), random(3, 6, 4, 4, seed=8)
    loss = attention_transfer(s, t, variant=variant)
    changed = attention_transfer(1e3 * s[:, torch.randperm(4)], 1e-3 * t.flip(1), variant=variant)
    torch.testing.assert_close(changed, loss, rtol=1e-10, atol=0)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_attention_transfer_and_its_gradient_are_zero_when_the_student_equals_the_teacher(random, variant):
    t = random(3, 4, 4, 4, seed=9)
    s = t.clone().requires_grad_()
    loss = attention_transfer(s, t, variant=variant)
    loss.backward()
    assert loss == 0
    assert s.grad.abs().max() == 0


def test_attention_transfer_reads_a_transformer_on_its_grid(random):
    tokens, grid = random(2, 10, 5, seed=1), random(2, 3, 3, 3, seed=2)  # class token and 3x3 patches
    component = AttentionTransfer(student="map", teacher="tokens", grid=(3, 3), class_token=1)
    loss = component(Captured({"map": grid}), Captured({"tokens": tokens}), None)
    patches = tokens[:, 1:].transpose(1, 2).reshape(2, 5, 3, 3)
    assert loss.item() == pytest.approx(oracle(grid, patches, "code"), rel=1e-12)
