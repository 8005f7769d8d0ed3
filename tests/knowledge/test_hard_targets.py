"""Hard targets against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from kdx.knowledge.hard_targets import HardTargets, hard_targets
from kdx.knowledge.soft_targets import SoftTargets


def oracle(s, t):
    s, t = s.reshape(-1, s.shape[-1]), t.reshape(-1, t.shape[-1])
    top = s.max(axis=1)
    log_sum = top + np.log(np.exp(s - top[:, None]).sum(axis=1))
    return float(np.mean([log_sum[i] - s[i, np.argmax(t[i])] for i in range(len(s))]))


@pytest.mark.parametrize("shape", [(7, 10), (1, 10), (5, 2), (3, 4, 6)])
@pytest.mark.parametrize("std", [1.0, 100.0])
def test_it_is_the_cross_entropy_with_the_teachers_decision(random, shape, std):
    s, t = random(*shape, seed=1, std=std), random(*shape, seed=2, std=std)
    assert hard_targets(s, t).item() == pytest.approx(oracle(s.numpy(), t.numpy()), rel=1e-12)


def test_saturated_logits_at_a_gap_of_400_are_exact():
    s = torch.tensor([[400.0, 0.0]], requires_grad=True)
    loss = hard_targets(s, torch.tensor([[0.0, 1.0]]))
    loss.backward()
    assert loss.item() == 400.0
    assert s.grad.tolist() == [[1.0, -1.0]]


def test_of_equal_teacher_logits_the_first_class_is_taken():
    s = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64)
    expected = oracle(s.numpy(), np.array([[1.0, 0.0, 0.0]]))
    assert hard_targets(s, torch.ones(1, 3, dtype=torch.float64)).item() == pytest.approx(expected)


def test_gradients(random):
    s, t = random(4, 5, seed=1).requires_grad_(), random(4, 5, seed=2)
    assert gradcheck(lambda a: hard_targets(a, t), (s,))


def test_soft_targets_tend_to_it_for_a_very_sure_teacher(random):
    s, t = random(6, 5, seed=1), random(6, 5, seed=2)
    sure = 1e3 * torch.nn.functional.one_hot(t.argmax(1), 5).double()
    from kdx.capture import Captured

    soft = SoftTargets(1.0)(Captured({"logits": s}), Captured({"logits": sure}), None)
    torch.testing.assert_close(soft, hard_targets(s, t))


def test_an_empty_batch_gives_zero_and_repeating_the_batch_changes_nothing(random):
    assert hard_targets(torch.zeros(0, 5), torch.zeros(0, 5)) == 0
    s, t = random(4, 5, seed=1), random(4, 5, seed=2)
    torch.testing.assert_close(hard_targets(s, t), hard_targets(s.repeat(3, 1), t.repeat(3, 1)))


def test_the_component_stands_what_all_do(random, check_component):
    # Values that half precision tells apart, so that the teacher's decision survives rounding.
    teacher = torch.stack([torch.randperm(5, generator=torch.Generator().manual_seed(i)) for i in range(6)]).double()
    check_component(HardTargets(student="a", teacher="b"), {"a": random(6, 5, seed=1)}, {"b": teacher})


def test_different_shapes_are_an_error(random):
    with pytest.raises(ValueError, match=r"expected the student's shape \[4, 5\], got \[3, 5\]"):
        hard_targets(random(4, 5), random(3, 5))
