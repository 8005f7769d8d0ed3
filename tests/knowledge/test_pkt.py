"""Probabilistic knowledge transfer against numpy, in both forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdx.knowledge.pkt import PKT, pkt

VARIANTS = ["code", "paper"]


def cosine(a, b):
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.dot(a, b) / lengths) if lengths > 0 else 0.0


def oracle(s, t, variant):
    n = len(s)
    s, t = s.reshape(n, -1), t.reshape(n, -1)

    def neighbours(f):
        p = np.array([[(cosine(f[i], f[j]) + 1) / 2 for j in range(n)] for i in range(n)])
        if variant == "paper":
            np.fill_diagonal(p, 0)
        return p / p.sum(axis=1, keepdims=True)

    p, q = neighbours(t), neighbours(s)
    total = sum(
        p[i, j] * np.log((p[i, j] + 1e-7) / (q[i, j] + 1e-7))
        for i in range(n)
        for j in range(n)
        if variant == "code" or i != j
    )
    return float(total if variant == "paper" else total / n**2)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("shape_s", "shape_t"), [((6, 5), (6, 9)), ((4, 3, 4, 4), (4, 8, 2, 2)), ((2, 5), (2, 3))])
def test_values(random, shape_s, shape_t, variant):
    s, t = random(*shape_s, seed=1, std=30.0), random(*shape_t, seed=2)
    expected = oracle(s.numpy(), t.numpy(), variant)
    assert pkt(s, t, variant=variant).item() == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_zero_row_gives_no_nan_but_equal_neighbours(random, variant):
    s, t = random(6, 5, seed=1), random(6, 5, seed=2)
    s[2] = 0
    s[4] = s[3]
    s.requires_grad_()
    loss = pkt(s, t, variant=variant)
    loss.backward()
    assert loss.item() == pytest.approx(oracle(s.detach().numpy(), t.numpy(), variant), rel=1e-9)
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_holds_for_relations(check_relation, variant):
    # The authors' epsilon inside the logarithm leaves a gradient of its own size.
    check_relation(lambda s, t: pkt(s, t, variant=variant), still=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rotation_and_the_length_of_any_row_change_nothing(random, variant):
    s, t = random(6, 5, seed=1), random(6, 5, seed=2)
    rotation, _ = torch.linalg.qr(random(5, 5, seed=3))
    lengths = random(6, 1, seed=4).abs() + 0.1
    torch.testing.assert_close(pkt(s @ rotation, t, variant=variant), pkt(s, t, variant=variant))
    torch.testing.assert_close(pkt(s * lengths, t, variant=variant), pkt(s, t, variant=variant))


def test_opposite_features_are_no_neighbours_and_stay_finite_in_half_precision():
    s = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float16, requires_grad=True)
    for variant in VARIANTS:
        s.grad = None
        loss = pkt(s, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), variant=variant)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_component_stands_what_all_do(random, check_component, variant):
    component = PKT(variant=variant, student="a", teacher="b")
    check_component(component, {"a": random(6, 5, seed=1)}, {"b": random(6, 4, seed=2)})
