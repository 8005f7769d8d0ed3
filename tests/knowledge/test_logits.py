"""Logit matching against numpy, and where soft targets tend to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from kdx.knowledge.logits import Logits, match_logits
from kdx.knowledge.soft_targets import SoftTargets


@pytest.mark.parametrize("shape", [(7, 10), (1, 10), (5, 2), (3, 4, 6)])
def test_both_reductions_are_the_mean_and_half_the_sum_over_classes(random, shape):
    s, t = random(*shape, seed=1), random(*shape, seed=2)
    errors = (s.numpy() - t.numpy()) ** 2
    assert match_logits(s, t).item() == pytest.approx(errors.mean(), rel=1e-12)
    paper = 0.5 * errors.reshape(-1, shape[-1]).sum(axis=1).mean()
    assert match_logits(s, t, variant="paper").item() == pytest.approx(paper, rel=1e-12)


def test_saturated_logits_at_a_gap_of_400_are_exact(random):
    s, t = torch.tensor([[400.0, 0.0]]).half(), torch.tensor([[0.0, 0.0]]).half()
    assert match_logits(s, t).item() == 80000.0  # more than float16 can hold


def test_gradients(random):
    s, t = random(4, 5, seed=1).requires_grad_(), random(4, 5, seed=2).requires_grad_()
    for variant in ("code", "paper"):
        assert gradcheck(lambda a, b, v=variant: match_logits(a, b, variant=v), (s, t))


def test_equal_logits_give_zero_loss_and_zero_gradient(random, loss_and_gradients):
    s = random(4, 5)
    loss, gradients = loss_and_gradients(Logits(), {"logits": s}, {"logits": s}, None)
    assert loss == 0
    assert (gradients["logits"] == 0).all()


def test_repeating_the_batch_changes_nothing(random):
    s, t = random(4, 5, seed=1), random(4, 5, seed=2)
    for variant in ("code", "paper"):
        once, twice = match_logits(s, t, variant=variant), match_logits(s.repeat(2, 1), t.repeat(2, 1), variant=variant)
        torch.testing.assert_close(once, twice)


def test_half_of_it_is_the_limit_of_soft_targets_for_a_high_temperature(random, loss_and_gradients):
    s, t = random(6, 8, seed=1), random(6, 8, seed=2)
    s, t = s - s.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
    soft, soft_gradient = loss_and_gradients(SoftTargets(1e5), {"logits": s}, {"logits": t}, None)
    hard, hard_gradient = loss_and_gradients(Logits(), {"logits": s}, {"logits": t}, None)
    assert soft.item() == pytest.approx(0.5 * hard.item(), rel=1e-4)
    error = soft_gradient["logits"] - 0.5 * hard_gradient["logits"]
    assert error.norm() < 1e-4 * hard_gradient["logits"].norm()


def test_an_empty_batch_gives_zero(loss_and_gradients):
    empty = torch.zeros(0, 5)
    for variant in ("code", "paper"):
        loss, gradients = loss_and_gradients(Logits(variant=variant), {"logits": empty}, {"logits": empty}, None)
        assert loss == 0
        assert gradients["logits"].shape == (0, 5)


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_the_component_stands_what_all_do(random, check_component, variant):
    component = Logits(variant=variant, student="a", teacher="b")
    check_component(component, {"a": random(6, 5, seed=1)}, {"b": random(6, 5, seed=2)})
    expected = np.square(random(6, 5, seed=1).numpy() - random(6, 5, seed=2).numpy()).mean()
    assert match_logits(random(6, 5, seed=1), random(6, 5, seed=2)).item() == pytest.approx(expected)


def test_errors_say_what_to_do(random):
    with pytest.raises(ValueError, match=r"expected the student's shape \[4, 5\], got \[4, 6\]"):
        match_logits(random(4, 5), random(4, 6))
    with pytest.raises(ValueError, match="variant: there is no 'papers'; did you mean 'paper'"):
        Logits(variant="papers")
