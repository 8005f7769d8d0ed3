"""Sigmoid targets against numpy, and where they fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck

import kdx
from kdx.knowledge import SigmoidTargets, SoftTargets
from kdx.knowledge.sigmoid_targets import sigmoid_kl
from kdx.tasks import Binary, Classification, MultiLabel, Regression


def reference(s: np.ndarray, t: np.ndarray, temperature: float) -> np.ndarray:
    """The KL of every element."""
    p, q = (1 / (1 + np.exp(-z / temperature)) for z in (t, s))
    return temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(("shape", "dim"), [((7, 5), 1), ((7, 1), 1), ((3, 5, 4, 2), 1), ((3, 4, 5), 2)])
def test_it_is_the_sum_over_labels_and_the_mean_over_elements(random, shape, dim, temperature):
    s, t = random(*shape, seed=1), random(*shape, seed=2)
    wanted = reference(s.numpy(), t.numpy(), temperature).sum(dim).mean()
    assert sigmoid_kl(s, t, temperature=temperature).item() == pytest.approx(wanted, rel=1e-12)
    assert gradcheck(lambda a, b: sigmoid_kl(a, b, temperature=temperature), (s.requires_grad_(), t.requires_grad_()))


def test_saturated_logits_keep_their_digits_and_their_gradient():
    s = torch.tensor([[60.0, -60.0]], requires_grad=True)
    loss = sigmoid_kl(s, torch.tensor([[-60.0, -60.0]]))
    assert loss.item() == pytest.approx(60.0, rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, s)[0], torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize("task", [Binary(), nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits])
@pytest.mark.parametrize("flat", [False, True])
def test_one_logit_is_yes_or_no(task, flat):
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Linear(3, 1), *[nn.Flatten(0)] * flat).double() for _ in range(2))
    x = torch.randn(6, 3, dtype=torch.float64)
    y = torch.randint(2, (6, 1)).double()
    kd = {"kd": SigmoidTargets(2.0)}
    losses = kdx.Offline(student, teacher, task=task, knowledge=kd)((x, y.flatten() if flat else y))
    s, t = student(x).detach().numpy(), teacher(x).detach().numpy()
    assert losses.terms["kd"].item() == pytest.approx(reference(s, t, 2.0).mean(), rel=1e-10)
    assert losses.counts["kd"] == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_the_teacher_teaches_labels_that_nobody_knows(dtype):
    student, teacher, x = nn.Linear(3, 4), nn.Linear(3, 4), torch.randn(6, 3)
    y = torch.randint(2, (6, 4)).to(dtype)
    hidden = MultiLabel().hidden(y)
    scheme = kdx.Offline(student, teacher, task=MultiLabel(), knowledge={"kd": SigmoidTargets()})
    torch.testing.assert_close(scheme((x, y)).terms["kd"], scheme((x, hidden)).terms["kd"])
    assert scheme((x, hidden)).terms["task"] == 0


@pytest.mark.parametrize("task", [Classification(), F.cross_entropy, Regression()])
def test_outputs_of_another_form_are_refused(task):
    with pytest.raises(ValueError, match=r"knowledge 'kd': SigmoidTargets compares outputs of the form 'Bernoulli'"):
        kdx.Offline(nn.Linear(3, 2), nn.Linear(3, 2), task=task, knowledge={"kd": SigmoidTargets()})


@pytest.mark.parametrize("task", [MultiLabel(), nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits])
def test_a_softmax_of_labels_is_refused(task):
    with pytest.raises(ValueError, match="'sigmoid-targets' compares them label by label"):
        kdx.Offline(nn.Linear(3, 2), nn.Linear(3, 2), task=task, knowledge={"kd": SoftTargets()})


def test_without_a_task_it_teaches():
    scheme = kdx.Offline(nn.Linear(3, 2), nn.Linear(3, 2), task=None, knowledge={"kd": SigmoidTargets()})
    assert scheme((torch.randn(4, 3), None)).total > 0


def test_a_temperature_of_0_is_refused():
    with pytest.raises(ValueError, match="temperature must be > 0 and finite, got 0"):
        SigmoidTargets(0)
