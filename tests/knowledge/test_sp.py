"""Similarity preservation against numpy, and what it does not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdx.capture import Captured
from kdx.knowledge.sp import SP, sp


def oracle(s, t):
    n = len(s)
    s, t = s.reshape(n, -1), t.reshape(n, -1)

    def similarities(f):
        g = np.array([[float(np.dot(a, b)) for b in f] for a in f])
        return np.array([row / np.linalg.norm(row) if np.linalg.norm(row) > 0 else row for row in g])

    return float(((similarities(s) - similarities(t)) ** 2).sum() / n**2)


@pytest.mark.parametrize("std", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("shape_s", "shape_t"), [((6, 5), (6, 9)), ((4, 3, 4, 4), (4, 8, 2, 2)), ((1, 5), (1, 3))])
def test_values(random, shape_s, shape_t, std):
    s, t = random(*shape_s, seed=1, std=std), random(*shape_t, seed=2)
    assert sp(s, t).item() == pytest.approx(oracle(s.numpy(), t.numpy()), rel=1e-10, abs=1e-15)


def test_zero_rows_and_duplicates(random):
    s, t = random(6, 5, seed=1), random(6, 5, seed=2)
    s[2] = 0
    s[4] = s[3]
    t[0] = 0
    assert sp(s, t).item() == pytest.approx(oracle(s.numpy(), t.numpy()), rel=1e-10)


def test_what_holds_for_relations(check_relation):
    check_relation(sp)


def test_rotation_and_scale_of_a_feature_change_nothing(random):
    s, t = random(6, 5, seed=1), random(6, 5, seed=2)
    rotation, _ = torch.linalg.qr(random(5, 5, seed=3))
    torch.testing.assert_close(sp(s @ rotation, t), sp(s, t))
    torch.testing.assert_close(sp(7.0 * s, 0.1 * t), sp(s, t))
    assert sp(s + 1, t) != pytest.approx(sp(s, t).item())


def test_losses_of_several_layers_are_added(random):
    s = {"a": random(4, 3, 2, 2, seed=1), "b": random(4, 6, seed=2)}
    t = {"x": random(4, 5, seed=3), "y": random(4, 2, seed=4)}
    both = SP(student=("a", "b"), teacher=("x", "y"))(Captured(s), Captured(t), None)
    torch.testing.assert_close(both, sp(s["a"], t["x"]) + sp(s["b"], t["y"]))


def test_layers_are_paired_by_the_strategy_asked_for(random):
    s = {"a": random(4, 3, 2, 2, seed=1), "b": random(4, 6, seed=2)}
    t = {"x": random(4, 5, seed=3), "y": random(4, 2, seed=4)}
    reverse = SP(student=("a", "b"), teacher=("x", "y"), pairing="reverse")(Captured(s), Captured(t), None)
    torch.testing.assert_close(reverse, sp(s["a"], t["y"]) + sp(s["b"], t["x"]))


def test_the_component_stands_what_all_do(random, check_component):
    check_component(SP(student="a", teacher="b"), {"a": random(6, 5, seed=1)}, {"b": random(6, 4, seed=2)})
