"""The KL of normal distributions against torch.distributions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.distributions import Normal, kl_divergence

import kdx
from kdx.knowledge import GaussianKL
from kdx.knowledge.gaussian_kl import gaussian_kl
from kdx.tasks import MultiLabel, Regression


def normal(outputs: torch.Tensor) -> Normal:
    mean, log_variance = outputs.chunk(2, 1)
    return Normal(mean, (log_variance / 2).exp())


def test_it_is_the_divergence_of_the_distributions(random):
    s, t = random(5, 6, seed=1), random(5, 6, seed=2)
    torch.testing.assert_close(gaussian_kl(s, t), kl_divergence(normal(t), normal(s)).mean())
    assert gradcheck(gaussian_kl, (s.requires_grad_(), t.requires_grad_()))


def test_a_student_without_variances_has_the_teachers(random):
    s, t = random(5, 3, seed=1), random(5, 6, seed=2)
    whole = torch.cat([s, t[:, 3:]], 1)
    torch.testing.assert_close(gaussian_kl(s, t), kl_divergence(normal(t), normal(whole)).mean())


def test_a_teacher_that_is_unsure_teaches_less():
    s, sure, unsure = torch.zeros(1, 1), torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]])
    assert gaussian_kl(s, unsure) < gaussian_kl(s, sure) / 7


def test_it_teaches_a_regression(random):
    task = Regression(loss="gaussian")
    scheme = kdx.Offline(nn.Linear(3, 2), nn.Linear(3, 2), task=task, knowledge={"kd": GaussianKL()})
    losses = scheme((torch.randn(4, 3), torch.randn(4)))
    assert losses.total.isfinite()
    with pytest.raises(ValueError, match="of the form 'Bernoulli'; take the task regression"):
        kdx.Offline(nn.Linear(3, 2), nn.Linear(3, 2), task=MultiLabel(), knowledge={"kd": GaussianKL()})


@pytest.mark.parametrize(("student", "teacher"), [((4, 3), (4, 3)), ((4, 2), (4, 6)), ((4,), (4, 2)), ((3, 2), (4, 2))])
def test_other_shapes_are_refused(student, teacher):
    with pytest.raises(ValueError, match=r"expected a (teacher|student)"):
        gaussian_kl(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.parametrize("rows", [0, 1, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_it_is_finite_for_awkward_inputs(random, rows, dtype):
    for same in (False, True):
        student, teacher = random(rows, 6, seed=1).to(dtype), random(rows, 6, seed=2).to(dtype)
        if same:
            student, teacher = torch.zeros_like(student), torch.zeros_like(teacher)
        leaf = student.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = gaussian_kl(leaf, teacher)
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert gradient.isfinite().all()
        assert (loss == 0) == (same or rows == 0)
