"""Soft targets against numpy, what must hold for them, and the mistakes other code makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from kdx.capture import Captured
from kdx.knowledge.soft_targets import SoftTargets


def loss_of(s, t, temperature=4.0):
    return SoftTargets(temperature)(Captured({"logits": s}), Captured({"logits": t}), None)


def oracle(s, t, temperature):
    def log_softmax(z):
        z = z.reshape(-1, z.shape[-1]) / temperature
        z = z - z.max(axis=1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    q, p = log_softmax(s), log_softmax(t)
    return temperature**2 * float((np.exp(p) * (p - q)).sum(axis=1).mean())


@pytest.mark.parametrize("shape", [(7, 10), (1, 10), (5, 2), (4, 100), (3, 4, 6)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_values(random, shape, temperature):
    s, t = random(*shape, seed=1, std=3.0), random(*shape, seed=2, std=3.0)
    assert loss_of(s, t, temperature).item() == pytest.approx(oracle(s.numpy(), t.numpy(), temperature), rel=1e-10)


def test_saturated_logits_at_a_gap_of_400_are_exact_with_a_finite_gradient():
    s = torch.tensor([[400.0, 0.0]], requires_grad=True)
    loss = loss_of(s, torch.tensor([[0.0, 400.0]]), 1.0)
    loss.backward()
    assert loss.item() == 400.0
    torch.testing.assert_close(s.grad, torch.tensor([[1.0, -1.0]]))


def test_equal_logits_give_zero_loss_and_zero_gradient(random):
    s = random(4, 10, std=3.0).requires_grad_()
    loss = loss_of(s, s.detach().clone())
    loss.backward()
    assert loss == 0
    assert (s.grad == 0).all()


def test_the_mean_is_over_samples_and_not_over_classes(random):
    """The default reduction of nn.KLDivLoss divides by the classes too, 100 times too small for 100 classes."""
    s, t = random(8, 100, seed=1), random(8, 100, seed=2)
    small = F.kl_div(s.log_softmax(1), t.softmax(1), reduction="none").mean()
    torch.testing.assert_close(loss_of(s, t, 1.0), 100 * small)


def test_repeating_the_batch_or_every_class_changes_nothing(random):
    s, t = random(4, 10, seed=1), random(4, 10, seed=2)
    torch.testing.assert_close(loss_of(s.repeat(3, 1), t.repeat(3, 1)), loss_of(s, t))
    torch.testing.assert_close(loss_of(s.repeat(1, 5), t.repeat(1, 5)), loss_of(s, t))


def test_t_squared_keeps_the_size_of_the_gradient_which_falls_as_t_squared_without_it(random):
    s, t = random(16, 10, seed=1, std=0.1), random(16, 10, seed=2, std=0.1)
    norms = {}
    for temperature in (2.0, 4.0, 8.0):
        leaf = s.clone().requires_grad_()
        loss_of(leaf, t, temperature).backward()
        norms[temperature] = leaf.grad.norm().item()
    assert max(norms.values()) / min(norms.values()) < 1.05
    leaf = s.clone().requires_grad_()
    F.kl_div((leaf / 8).log_softmax(1), (t / 8).softmax(1), reduction="batchmean").backward()
    assert leaf.grad.norm().item() == pytest.approx(norms[8.0] / 64, rel=1e-6)


def test_for_a_high_temperature_the_gradient_is_that_of_matching_centred_logits(random):
    s, t = random(6, 10, seed=1).requires_grad_(), random(6, 10, seed=2)
    loss_of(s, t, 1e5).backward()
    gap = s.detach() - t
    expected = (gap - gap.mean(1, keepdim=True)) / 10 / 6
    assert (s.grad - expected).norm() < 1e-4 * expected.norm()


def test_the_gradient_is_that_of_the_divergence_and_not_of_squared_probabilities(random):
    s, t = random(6, 10, seed=1).requires_grad_(), random(6, 10, seed=2)
    loss_of(s, t, 2.0).backward()
    torch.testing.assert_close(s.grad, 2.0 * ((s.detach() / 2).softmax(1) - (t / 2).softmax(1)) / 6)


def test_classes_that_do_not_exist_get_no_mass_when_they_are_masked_out(random):
    """A vocabulary padded with zeros gives mass to tokens that do not exist; padded with -inf it does not."""
    s, t = random(4, 6, seed=1), random(4, 6, seed=2)
    masked = [F.pad(x, (0, 3), value=-torch.inf) for x in (s, t)]
    torch.testing.assert_close(loss_of(*masked), loss_of(s, t))
    assert loss_of(F.pad(s, (0, 3)), F.pad(t, (0, 3))).item() != pytest.approx(loss_of(s, t).item(), rel=1e-3)


def test_gradients(random):
    s, t = random(4, 5, seed=1).requires_grad_(), random(4, 5, seed=2).requires_grad_()
    assert gradcheck(lambda a, b: loss_of(a, b, 2.0), (s, t))


def test_an_empty_batch_gives_zero_with_an_empty_gradient():
    s = torch.zeros(0, 5, requires_grad=True)
    loss = loss_of(s, torch.zeros(0, 5))
    loss.backward()
    assert loss == 0
    assert s.grad.shape == (0, 5)


def test_the_component_stands_what_all_do(random, check_component):
    component = SoftTargets(2.0, student="a", teacher="b")
    check_component(component, {"a": random(6, 5, seed=1)}, {"b": random(6, 5, seed=2)})


def test_errors_say_what_to_do(random):
    with pytest.raises(ValueError, match="temperature must be > 0 and finite, got 0"):
        SoftTargets(0)
    with pytest.raises(ValueError, match="expected the student's shape"):
        loss_of(random(4, 3), random(4, 5))
