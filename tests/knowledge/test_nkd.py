"""NKD against an oracle in probability space, and its traps: the normalisation, T, rows without a label."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import kdx
from kdx.batch import Batch
from kdx.capture import Captured
from kdx.knowledge import NKD
from kdx.knowledge.nkd import nkd


def softmax(z):
    exponent = np.exp(z - z.max())
    return exponent / exponent.sum()


def oracle(student, teacher, targets, temperature, gamma):
    """As the paper writes it: probabilities, and those of the other classes over their sum."""
    rows = []
    for s, t, y in zip(student.numpy(), teacher.numpy(), targets.tolist(), strict=True):
        if y < 0:
            continue
        value = -softmax(t)[y] * np.log(softmax(s)[y])
        p, q = softmax(t / temperature), softmax(s / temperature)
        for i in range(len(s)):
            if i != y:
                value -= gamma * temperature**2 * p[i] / (1 - p[y]) * np.log(q[i] / (1 - q[y]))
        rows.append(value)
    return float(np.mean(rows))


@pytest.mark.parametrize(("n", "c"), [(9, 10), (1, 3), (5, 2), (4, 100)])
@pytest.mark.parametrize(("temperature", "gamma"), [(1.0, 1.5), (3.0, 0.5), (2.0, 0.0)])
def test_it_has_the_value_of_the_oracle(random, n, c, temperature, gamma):
    s, t, targets = random(n, c, seed=1, std=2), random(n, c, seed=2, std=2), torch.arange(n) % c
    found = nkd(s, t, targets, temperature=temperature, gamma=gamma).item()
    assert found == pytest.approx(oracle(s, t, targets, temperature, gamma), rel=1e-9)


def test_rows_without_a_label_count_for_nothing(random):
    s, t = random(6, 4, seed=1).requires_grad_(), random(6, 4, seed=2)
    targets = torch.tensor([0, -100, 2, 3, -100, 1])
    loss = nkd(s, t, targets)
    assert loss.item() == pytest.approx(oracle(s.detach(), t, targets, 1.0, 1.5), rel=1e-10)
    loss.backward()
    assert s.grad[targets < 0].abs().max() == 0
    empty = nkd(s, t, torch.full((6,), -100))
    assert empty == 0
    assert torch.autograd.grad(empty, s)[0].abs().max() == 0


def test_the_gradient_is_right_and_finite_where_the_softmax_saturates(random):
    s, t = random(4, 5, seed=3).requires_grad_(), random(4, 5, seed=4).requires_grad_()
    assert gradcheck(lambda a, b: nkd(a, b, torch.tensor([0, 4, -100, 2]), temperature=2.0), (s, t))
    far = torch.tensor([[0.0, 500.0, 1.0], [-torch.inf, 0.0, 1.0]], requires_grad=True)
    sure = torch.tensor([[500.0, 0.0, 2.0], [-torch.inf, 3.0, 1.0]], requires_grad=True)
    loss = nkd(far, sure, torch.tensor([0, 2]))
    loss.backward()
    assert loss.isfinite()
    assert far.grad.isfinite().all()
    assert sure.grad.isfinite().all()


def test_the_second_term_is_smallest_at_the_teacher_because_both_sides_sum_to_1(random):
    t = random(3, 6, seed=5)
    s = t.clone().requires_grad_()
    targets = torch.tensor([1, 3, 5])
    others = nkd(s, t, targets, gamma=1.0) - nkd(s, t, targets, gamma=0.0)
    assert torch.autograd.grad(others, s)[0].abs().max() < 1e-12
    moved = t + random(3, 6, seed=6) * 0.1
    assert nkd(moved, t, targets, gamma=1.0) - nkd(moved, t, targets, gamma=0.0) > others


def test_soft_labels_missing_labels_and_other_class_counts_are_refused(random):
    s = Captured({"logits": random(2, 3)})
    with pytest.raises(ValueError, match=r"NKD splits the classes at the label and needs integer labels"):
        NKD()(s, s, Batch(None))
    with pytest.raises(ValueError, match=r"NKD needs integer labels, not probabilities"):
        NKD()(s, s, Batch(None, random(2, 3).softmax(1)))
    with pytest.raises(ValueError, match=r"expected the student's shape \[2, 3\], got \[2, 4\]"):
        NKD()(s, Captured({"logits": random(2, 4)}), Batch(None, torch.tensor([0, 1])))


def test_pixels_of_a_segmentation_are_rows(random):
    s, t = random(2, 3, 2, 2, seed=1), random(2, 3, 2, 2, seed=2)
    targets = torch.tensor([[[0, 1], [2, -100]], [[-100, 1], [0, 0]]])
    component = NKD()
    component.bind(kdx.make("task", "segmentation").responses)
    found = component(Captured({"logits": s}), Captured({"logits": t}), Batch(None, targets)).item()
    rows = [x.movedim(1, -1).reshape(-1, 3) for x in (s, t)]
    assert found == pytest.approx(oracle(*rows, targets.flatten(), 1.0, 1.5), rel=1e-10)
