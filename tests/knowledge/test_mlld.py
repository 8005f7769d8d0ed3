"""MLLD against an oracle of loops, what T^2 is on, and what the code's mask really does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kdx
from kdx.batch import Batch
from kdx.capture import Captured
from kdx.knowledge import MLLD
from kdx.knowledge.mlld import mlld


def softmax(z):
    exponent = np.exp(z - z.max(1, keepdims=True))
    return exponent / exponent.sum(1, keepdims=True)


def levels(student, teacher, temperature):
    """The three levels, by loops."""
    q, p = softmax(student.numpy() / temperature), softmax(teacher.numpy() / temperature)
    n, c = q.shape
    kl = temperature**2 * sum((p[i] * np.log(p[i] / q[i])).sum() for i in range(n)) / n
    batch = sum((q[i] @ q[j] - p[i] @ p[j]) ** 2 for i in range(n) for j in range(n)) / n
    classes = sum((q[:, i] @ q[:, j] - p[:, i] @ p[:, j]) ** 2 for i in range(c) for j in range(c)) / c
    return np.array([kl, batch, classes])


@pytest.mark.parametrize(("n", "c"), [(6, 4), (1, 3), (5, 10)])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.9, 0.0, 2.0)])
def test_it_is_the_weighted_sum_of_the_levels_over_the_temperatures(random, n, c, weights):
    s, t = random(n, c, seed=1, std=2), random(n, c, seed=2, std=2)
    found = mlld(s, t, temperatures=(2.0, 5.0), instance=weights[0], batch=weights[1], classes=weights[2])
    expected = (np.array(weights) * (levels(s, t, 2.0) + levels(s, t, 5.0))).sum()
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_the_code_multiplies_the_levels_by_the_shares_of_its_mask(random):
    s, t = random(5, 4, seed=1, std=2), random(5, 4, seed=2, std=2)
    p = softmax(t.numpy())
    sure, wanted = p.max(1), p.sum(0)
    rows = (sure <= np.percentile(sure, 50)).mean()
    classes = (wanted <= np.percentile(wanted, 50)).mean()
    assert (rows, classes) == (0.6, 0.5)
    expected = (np.array([rows, rows, classes]) * levels(s, t, 3.0)).sum()
    assert mlld(s, t, temperatures=[3.0], variant="code").item() == pytest.approx(expected, rel=1e-10)


def test_the_gradient_is_right_and_0_at_the_teacher(random):
    s, t = random(4, 3, seed=3).requires_grad_(), random(4, 3, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: mlld(a, b, temperatures=(2.0, 4.0)), (s, t))
    same = t.detach().clone().requires_grad_()
    loss = mlld(same, t.detach())
    loss.backward()
    assert abs(loss.item()) < 1e-14
    assert same.grad.abs().max() < 1e-12


def test_void_pixels_are_in_no_product_and_a_batch_of_them_teaches_nothing(random):
    s, t = random(2, 3, 2, 2, seed=1).requires_grad_(), random(2, 3, 2, 2, seed=2)
    targets = torch.tensor([[[0, 1], [2, -100]], [[-100, 1], [0, 0]]])
    component = MLLD([2.0])
    component.bind(kdx.make("task", "segmentation").responses)
    loss = component(Captured({"logits": s}), Captured({"logits": t}), Batch(None, targets))
    rows = [x.detach().movedim(1, -1).reshape(-1, 3)[targets.flatten() >= 0] for x in (s, t)]
    assert loss.item() == pytest.approx(levels(*rows, 2.0).sum(), rel=1e-10)
    none = component(Captured({"logits": s}), Captured({"logits": t}), Batch(None, torch.full_like(targets, -100)))
    assert none == 0
    assert torch.autograd.grad(none, s)[0].abs().max() == 0


def test_options_that_teach_nothing_are_refused():
    with pytest.raises(ValueError, match="temperatures: expected one or more"):
        MLLD([])
    with pytest.raises(ValueError, match="temperatures must be > 0"):
        MLLD([2.0, 0.0])
    with pytest.raises(ValueError, match="instance, batch and classes are all 0"):
        MLLD(instance=0, batch=0, classes=0)
