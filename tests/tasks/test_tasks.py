"""Losses on labels and their metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdx.tasks.kinds import task_kind, triplet
from kdx.tasks.recall_at_one import RecallAtOne


def triplet_oracle(x: np.ndarray, y: np.ndarray, margin: float) -> float:
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    terms = [
        ((x[a] - x[p]) ** 2).sum() - ((x[a] - x[n]) ** 2).sum() + margin
        for a in range(len(x))
        for p in range(len(x))
        for n in range(len(x))
        if a != p and y[a] == y[p] != y[n] and min(y[a], y[n]) >= 0
    ]
    terms = [term for term in terms if term > 0]
    return float(np.mean(terms)) if terms else 0.0


@pytest.mark.parametrize("margin", [0.2, 1.0])
def test_triplet_loss_is_the_mean_over_violating_triples(margin: float) -> None:
    x = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, -100, -100, 3, 0])
    loss = triplet(x, y, margin=margin)
    assert loss.item() == pytest.approx(triplet_oracle(x.detach().numpy(), y.numpy(), margin))
    assert torch.autograd.gradcheck(lambda x: triplet(x, y, margin=margin), x)


def test_triplet_loss_without_a_triple_is_zero_with_zero_gradient() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    for y in (torch.zeros(4, dtype=torch.int64), torch.arange(4), torch.full((4,), -100)):
        loss = triplet(x, y)
        (gradient,) = torch.autograd.grad(loss, x)
        assert loss.item() == 0
        assert gradient.eq(0).all()


def test_recall_at_one_finds_the_nearest_other_sample() -> None:
    x = torch.randn(1500, 8)
    y = torch.randint(5, (1500,))
    metric = RecallAtOne()
    for rows in torch.arange(1500).split(400):
        metric.update(x[rows], y[rows])
    unit = x.double() / x.double().norm(dim=1, keepdim=True)
    near = unit @ unit.T
    near.fill_diagonal_(-2)
    assert metric.compute().item() == pytest.approx((y[near.argmax(1)] == y).double().mean().item(), abs=1e-6)


def test_unknown_tasks_are_named() -> None:
    with pytest.raises(ValueError, match="task must be 'cross-entropy' or 'triplet', got 'ranking'"):
        task_kind("ranking")
