"""DIST against numpy: both correlations, what they do not depend on, and the sign."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from kdx.knowledge.dist import DIST, dist

VARIANTS = ["code", "paper"]


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def correlation(a, b, epsilon):
    a, b = a - a.mean(), b - b.mean()
    lengths = np.linalg.norm(a) * np.linalg.norm(b) + epsilon
    return float(np.dot(a, b) / lengths) if lengths > 0 else 0.0


def oracle(s, t, temperature, inter, intra, variant):
    q, p = softmax(s / temperature), softmax(t / temperature)
    epsilon = 1e-8 if variant == "code" else 0.0
    rows = np.mean([correlation(a, b, epsilon) for a, b in zip(q, p, strict=True)])
    columns = np.mean([correlation(a, b, epsilon) for a, b in zip(q.T, p.T, strict=True)])
    return temperature**2 * (inter * (1 - rows) + intra * (1 - columns))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("n", "c"), [(9, 10), (5, 2), (4, 100)])
@pytest.mark.parametrize(("temperature", "inter", "intra"), [(4.0, 2.0, 2.0), (1.0, 1.0, 0.5)])
def test_values(random, n, c, temperature, inter, intra, variant):
    s, t = random(n, c, seed=1, std=3.0), random(n, c, seed=2, std=3.0)
    got = dist(s, t, temperature=temperature, inter_weight=inter, intra_weight=intra, variant=variant).item()
    assert got == pytest.approx(oracle(s.numpy(), t.numpy(), temperature, inter, intra, variant), rel=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_falls_towards_the_teacher_and_is_largest_against_it(random, variant):
    """The sign: correlation is maximised."""
    s, t = random(8, 6, seed=1), random(8, 6, seed=2)
    losses = [dist(s + share * (t - s), t, variant=variant).item() for share in (0.0, 0.5, 0.9, 1.0)]
    assert losses == sorted(losses, reverse=True)
    least = oracle(t.numpy(), t.numpy(), 4.0, 2.0, 2.0, variant)  # what the epsilon of "code" leaves
    assert losses[-1] == pytest.approx(least, abs=1e-12)
    assert least < 1e-3
    assert dist(-t, t, variant=variant) > losses[0] > 0
    leaf = s.clone().requires_grad_()
    dist(leaf, t, variant=variant).backward()
    assert dist(leaf.detach() - 1e-3 * leaf.grad, t, variant=variant) < losses[0]


def test_zero_with_zero_gradient_when_equal(random):
    s = random(8, 6, std=2.0).requires_grad_()
    loss = dist(s, s.detach().clone(), variant="paper")
    loss.backward()
    assert abs(loss.item()) < 1e-13
    assert s.grad.abs().max() < 1e-13


def test_the_rows_of_the_prediction_may_be_any_increasing_line_of_the_teachers(random):
    t = random(8, 6, seed=2)
    p = t.softmax(1)
    mixed = (0.3 * p + 0.7 / 6).log()  # another distribution, the same correlation
    assert dist(mixed, t, temperature=1.0, variant="paper").item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_of_one_has_no_classes_to_compare_and_stays_finite(random, variant):
    s, t = random(1, 6, seed=1).requires_grad_(), random(1, 6, seed=2)
    loss = dist(s, t, temperature=1.0, variant=variant)
    loss.backward()
    rows = correlation(softmax(s.detach().numpy())[0], softmax(t.numpy())[0], 1e-8 if variant == "code" else 0.0)
    assert loss.item() == pytest.approx(2 * (1 - rows) + 2, rel=1e-9)
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_equal_logits_have_no_direction_rather_than_that_of_rounding(random, variant, dtype, classes):
    s = torch.full((5, classes), 0.1, dtype=dtype, requires_grad=True)
    loss = dist(s, random(5, classes).to(dtype), temperature=3.0, variant=variant)
    loss.backward()
    assert loss.item() == pytest.approx(9 * 4)  # both correlations 0
    assert (s.grad == 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_saturated_logits_at_a_gap_of_400_are_finite(variant):
    s = torch.tensor([[400.0, 0.0, 1.0], [0.0, 400.0, 1.0]], requires_grad=True)
    t = torch.tensor([[0.0, 400.0, 1.0], [400.0, 0.0, 1.0]])
    loss = dist(s, t, temperature=1.0, variant=variant)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()


def test_the_papers_form_counts_a_rare_class_in_full_and_the_codes_form_hardly(random):
    s, t = random(8, 3, seed=1), random(8, 3, seed=2)
    s[:, 2] -= 25
    t[:, 2] -= 25
    got = {v: dist(s, t, temperature=1.0, inter_weight=0.0, intra_weight=3.0, variant=v).item() for v in VARIANTS}
    q, p = softmax(s.numpy()), softmax(t.numpy())
    rest = 2 - correlation(q[:, 0], p[:, 0], 0) - correlation(q[:, 1], p[:, 1], 0)
    assert got["paper"] == pytest.approx(rest + 1 - correlation(q[:, 2], p[:, 2], 0), rel=1e-9)
    assert got["code"] == pytest.approx(rest + 1, rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients(random, variant):
    s, t = random(4, 5, seed=1).requires_grad_(), random(4, 5, seed=2).requires_grad_()
    assert gradcheck(lambda a, b: dist(a, b, temperature=2.0, variant=variant), (s, t))


def test_tokens_are_rows_and_an_empty_batch_gives_zero(random):
    s, t = random(3, 4, 6, seed=1), random(3, 4, 6, seed=2)
    torch.testing.assert_close(dist(s, t), dist(s.reshape(12, 6), t.reshape(12, 6)))
    empty = torch.zeros(0, 6, requires_grad=True)
    loss = dist(empty, torch.zeros(0, 6))
    loss.backward()
    assert loss == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_component_stands_what_all_do(random, check_component, variant):
    component = DIST(temperature=2.0, variant=variant, student="a", teacher="b")
    check_component(component, {"a": random(6, 5, seed=1)}, {"b": random(6, 5, seed=2)})


def test_errors_say_what_to_do(random):
    with pytest.raises(ValueError, match="temperature must be > 0"):
        DIST(temperature=0)
    with pytest.raises(ValueError, match="expected the student's shape"):
        dist(random(4, 3), random(4, 5))
