"""Correlation congruence against numpy: the series, its limit and the loss of the same name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdx.knowledge.cc import CC, cc


def oracle(s, t, gamma, order):
    def kernel(f):
        f = f.reshape(len(f), -1)
        f = np.array([row / np.linalg.norm(row) if np.linalg.norm(row) > 0 else row for row in f])
        cosines = f @ f.T
        terms = ((2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1))
        return math.exp(-2 * gamma) * sum(terms)

    return float(np.mean((kernel(s) - kernel(t)) ** 2))


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (0.4, 1), (1.5, 5)])
@pytest.mark.parametrize(("shape_s", "shape_t"), [((6, 5), (6, 9)), ((4, 3, 4, 4), (4, 8, 2, 2)), ((1, 5), (1, 3))])
def test_values(random, shape_s, shape_t, gamma, order):
    s, t = random(*shape_s, seed=1, std=10.0), random(*shape_t, seed=2)
    expected = oracle(s.numpy(), t.numpy(), gamma, order)
    assert cc(s, t, gamma=gamma, order=order).item() == pytest.approx(expected, rel=1e-10, abs=1e-15)


def test_zero_rows_and_duplicates(random):
    s, t = random(6, 5, seed=1), random(6, 5, seed=2)
    s[2] = 0
    s[4] = s[3]
    assert cc(s, t).item() == pytest.approx(oracle(s.numpy(), t.numpy(), 0.4, 2), rel=1e-10)


def test_the_series_tends_to_the_gaussian_kernel(random):
    s, t = random(6, 5, seed=1), random(6, 4, seed=2)

    def gaussian(f):
        f = f / f.norm(dim=1, keepdim=True)
        return torch.exp(-0.4 * torch.cdist(f, f) ** 2)

    expected = ((gaussian(s) - gaussian(t)) ** 2).mean()
    torch.testing.assert_close(cc(s, t, gamma=0.4, order=20), expected)


def test_the_loss_of_the_code_compares_neighbours_in_the_batch(random):
    s, t = random(6, 5, seed=1), random(6, 5, seed=2)
    d = np.abs(s.numpy() - t.numpy())
    expected = np.mean([np.sum(d[i] * d[i + 1]) for i in range(5)])
    assert cc(s, t, variant="code").item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_what_holds_for_relations(check_relation, variant):
    check_relation(lambda s, t: cc(s.flatten(1), t, variant=variant), ordered=variant == "code")


def test_rotation_and_the_length_of_any_row_change_nothing(random):
    s, t = random(6, 5, seed=1), random(6, 5, seed=2)
    rotation, _ = torch.linalg.qr(random(5, 5, seed=3))
    torch.testing.assert_close(cc(s @ rotation * (random(6, 1, seed=4).abs() + 0.1), t), cc(s, t))


def test_peak_memory_is_that_of_eleven_matrices_of_the_batch(peak_bytes):
    n, width = 256, 1024
    s, t = torch.randn(n, width, requires_grad=True), torch.randn(n, width)
    features = 4 * n * width
    assert peak_bytes(lambda: cc(s, t).backward()) <= 11 * 4 * n * n + 6 * features


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_the_component_stands_what_all_do(random, check_component, variant):
    component = CC(variant=variant, student="a", teacher="b")
    check_component(component, {"a": random(6, 5, seed=1)}, {"b": random(6, 5, seed=2)})


def test_errors_say_what_to_do(random):
    with pytest.raises(ValueError, match="order must be an integer >= 1, got 0"):
        CC(order=0)
    with pytest.raises(ValueError, match="gamma must be > 0 and finite, got 0"):
        CC(gamma=0)
    with pytest.raises(ValueError, match="expected the student's shape"):
        cc(random(4, 3), random(4, 5), variant="code")
