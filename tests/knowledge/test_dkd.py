"""DKD against numpy: the two terms, their identity with soft targets, and logits that saturate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from kdx.batch import Batch
from kdx.knowledge.dkd import DKD, dkd
from kdx.ops import softmax_kl


def log_softmax(z):
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def kl(a, b):
    """KL between two rows of log-probabilities."""
    return float(np.sum(np.exp(a) * (a - b)))


def terms(s, t, y, temperature):
    """TCKD and NCKD of one row, without T^2, in probability space as the paper writes them."""
    p_s, p_t = np.exp(log_softmax(s / temperature)), np.exp(log_softmax(t / temperature))
    pair_s, pair_t = np.array([p_s[y], np.delete(p_s, y).sum()]), np.array([p_t[y], np.delete(p_t, y).sum()])
    tckd = kl(np.log(pair_t), np.log(pair_s))
    nckd = kl(log_softmax(np.delete(t, y) / temperature), log_softmax(np.delete(s, y) / temperature))
    return tckd, nckd, p_t[y]


def oracle(s, t, targets, temperature, alpha, beta):
    rows = [terms(s[i], t[i], y, temperature) for i, y in enumerate(targets) if y >= 0]
    return temperature**2 * float(np.mean([alpha * tckd + beta * nckd for tckd, nckd, _ in rows]))


@pytest.mark.parametrize(("n", "c"), [(9, 10), (1, 10), (5, 2), (4, 100)])
@pytest.mark.parametrize(("temperature", "alpha", "beta"), [(4.0, 1.0, 8.0), (1.0, 1.0, 0.5), (2.0, 0.0, 1.0)])
def test_it_is_the_weighted_sum_of_both_terms(random, n, c, temperature, alpha, beta):
    s, t = random(n, c, seed=1, std=3.0), random(n, c, seed=2, std=3.0)
    targets = torch.arange(n) % c
    got = dkd(s, t, targets, temperature=temperature, alpha=alpha, beta=beta).item()
    expected = oracle(s.numpy(), t.numpy(), targets.numpy(), temperature, alpha, beta)
    assert got == pytest.approx(expected, rel=1e-10)


def test_soft_targets_are_tckd_plus_the_teachers_doubt_times_nckd(random):
    s, t, temperature = random(6, 10, seed=1), random(6, 10, seed=2), 3.0
    for i in range(6):
        y = torch.tensor([i])
        row_s, row_t = s[i : i + 1], t[i : i + 1]
        tckd = dkd(row_s, row_t, y, temperature=temperature, alpha=1.0, beta=0.0)
        nckd = dkd(row_s, row_t, y, temperature=temperature, alpha=0.0, beta=1.0)
        p_y = (row_t / temperature).softmax(1)[0, i]
        torch.testing.assert_close(tckd + (1 - p_y) * nckd, softmax_kl(row_s, row_t, temperature=temperature))


def test_nckd_is_zero_with_two_classes(random):
    s, t = random(5, 2, seed=1).requires_grad_(), random(5, 2, seed=2)
    loss = dkd(s, t, torch.tensor([0, 1, 0, 1, 1]), alpha=0.0, beta=8.0)
    (gradient,) = torch.autograd.grad(loss, s)
    assert loss == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize(
    ("gap", "dtype"),
    [(100.0, torch.float32), (400.0, torch.float32), (400.0, torch.float64), (1e4, torch.float64)],
)
def test_the_gradient_is_finite_and_right_where_the_softmax_saturates(gap, dtype):
    """The logarithm of a softmax is -inf here, with a NaN gradient."""
    s = torch.tensor([[gap, 0.0, 1.0], [0.0, gap, 1.0]], dtype=dtype, requires_grad=True)
    t = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], dtype=dtype)
    loss = dkd(s, t, torch.tensor([0, 0]), temperature=1.0, alpha=1.0, beta=0.0)
    loss.backward()
    p_y = float(torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64).softmax(0)[0])
    # d TCKD / d b = q - p in the target's binary logit; the others share the rest as their own softmax.
    rest = float(torch.tensor([0.0, 1.0], dtype=torch.float64).softmax(0)[0])
    first = [(1 - p_y) / 2, -(1 - p_y) * rest / 2, -(1 - p_y) * (1 - rest) / 2]
    torch.testing.assert_close(s.grad[0], torch.tensor(first, dtype=dtype))
    torch.testing.assert_close(s.grad[1], torch.tensor([-p_y / 2, p_y / 2, 0.0], dtype=dtype))
    assert torch.isfinite(loss)


def test_gradients(random):
    s, t = random(4, 5, seed=1).requires_grad_(), random(4, 5, seed=2).requires_grad_()
    assert gradcheck(lambda a, b: dkd(a, b, torch.tensor([0, 1, 4, -100]), temperature=2.0), (s, t))


def test_equal_logits_give_zero_loss_and_zero_gradient(random):
    s = random(4, 5, std=3.0).requires_grad_()
    loss = dkd(s, s.detach().clone(), torch.arange(4))
    loss.backward()
    assert loss == 0
    assert s.grad.abs().max() < 1e-15


def test_rows_without_a_label_count_for_nothing(random):
    s, t = random(4, 5, seed=1).requires_grad_(), random(4, 5, seed=2)
    loss = dkd(s, t, torch.tensor([1, -100, 3, -100]))
    torch.testing.assert_close(loss, dkd(s[::2], t[::2], torch.tensor([1, 3])))
    (gradient,) = torch.autograd.grad(loss, s)
    assert (gradient[1::2] == 0).all()


def test_a_batch_without_labels_or_without_rows_gives_zero_with_zero_gradient(random):
    for n in (3, 0):
        s = random(n, 5).requires_grad_()
        loss = dkd(s, random(n, 5, seed=2), torch.full((n,), -100))
        loss.backward()
        assert loss == 0
        assert (s.grad == 0).all()


def test_repeating_the_batch_changes_nothing_so_mean_is_no_sum(random):
    s, t, y = random(4, 5, seed=1), random(4, 5, seed=2), torch.arange(4)
    torch.testing.assert_close(dkd(s, t, y), dkd(s.repeat(5, 1), t.repeat(5, 1), y.repeat(5)))


def test_t_squared_keeps_the_size_of_the_gradient(random):
    s, t, y = random(16, 10, seed=1, std=0.1), random(16, 10, seed=2, std=0.1), torch.arange(16) % 10
    norms = []
    for temperature in (4.0, 8.0, 16.0):
        leaf = s.clone().requires_grad_()
        dkd(leaf, t, y, temperature=temperature).backward()
        norms.append(leaf.grad.norm().item())
    assert max(norms) / min(norms) < 1.05


def test_tokens_are_rows(random):
    s, t, y = random(3, 4, 6, seed=1), random(3, 4, 6, seed=2), torch.arange(12).reshape(3, 4) % 6
    torch.testing.assert_close(dkd(s, t, y), dkd(s.reshape(12, 6), t.reshape(12, 6), y.reshape(12)))


def test_the_component_stands_what_all_do(random, check_component):
    batch = Batch(None, torch.tensor([0, 1, 2, 3, 4, -100]))
    student, teacher = {"a": random(6, 5, seed=1)}, {"b": random(6, 5, seed=2)}
    check_component(DKD(temperature=2.0, student="a", teacher="b"), student, teacher, batch)


def test_errors_say_what_to_do(random, loss_and_gradients):
    s, t = random(4, 5, seed=1), random(4, 5, seed=2)
    with pytest.raises(ValueError, match=r"expected one label for each element, int64 of shape \[4\].*shape \[4, 5\]"):
        dkd(s, t, torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"two classes or more on axis 1, got shape \[4, 1\].*'binary'"):
        dkd(s[:, :1], t[:, :1], torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"needs integer labels .* use soft-targets"):
        loss_and_gradients(DKD(), {"logits": s}, {"logits": t}, Batch(None))
    with pytest.raises(ValueError, match="temperature must be > 0 and finite, got 0"):
        DKD(temperature=0)
