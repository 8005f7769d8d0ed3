"""Weighted soft targets against float64 NumPy, what the weight follows, and the conformance kit."""

import numpy as np
import pytest
import torch
from kdx_search.weighted_soft_targets import WeightedSoftTargets, weighted_soft_targets

from kdx import Batch, Captured, SoftTargets
from kdx.testing import KnowledgeTags, parametrize_checks


@parametrize_checks(
    WeightedSoftTargets(),
    tags=KnowledgeTags(zero_when_equal=True),
    expected_failures={
        "gradient_is_right": "the weight follows the student and has no gradient, as the authors have it"
    },
)
def test_conformance(check) -> None:
    check()


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_the_value_is_that_of_the_formula(temperature) -> None:
    torch.manual_seed(0)
    s, t = 3 * torch.randn(6, 5, dtype=torch.float64), 3 * torch.randn(6, 5, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, -100, 4])
    own, theirs = (-log_softmax(z.numpy())[range(6), y.clamp(min=0)] for z in (s, t))
    weight = np.where(y.numpy() == -100, 1.0, 1 - np.exp(-own / theirs))
    log_p, log_q = (log_softmax(z.numpy() / temperature) for z in (t, s))
    expected = temperature**2 * (weight * (np.exp(log_p) * (log_p - log_q)).sum(1)).mean()
    found = weighted_soft_targets(s, t, y, temperature=temperature)
    np.testing.assert_allclose(found.item(), expected, rtol=1e-6)  # 1e-7 beside the teacher's loss
    component = WeightedSoftTargets(temperature)(Captured({"logits": s}), Captured({"logits": t}), Batch(None, y))
    assert component == found


def gradient(loss, student):
    return torch.autograd.grad(loss, student)[0]


def test_the_gradient_is_that_of_soft_targets_times_the_weight_of_each_sample() -> None:
    torch.manual_seed(0)
    s = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    t, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    own, theirs = (torch.nn.functional.cross_entropy(z.detach(), y, reduction="none") for z in (s, t))
    plain = SoftTargets(2.0, void=False)(Captured({"logits": s}), Captured({"logits": t}), Batch(None, y))
    expected = gradient(plain, s) * (1 - torch.exp(-own / theirs))[:, None]
    torch.testing.assert_close(gradient(weighted_soft_targets(s, t, y), s), expected, rtol=1e-6, atol=1e-9)


def test_the_teacher_is_heard_less_as_the_student_becomes_surer_of_the_label() -> None:
    teacher, label = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    shares = []
    for sure in (-4.0, 2.0, 8.0):
        student = torch.tensor([[sure, 0.0, 0.0]])
        plain = SoftTargets(2.0, void=False)(Captured({"logits": student}), Captured({"logits": teacher}), None)
        shares.append((weighted_soft_targets(student, teacher, label) / plain).item() if sure != 2.0 else None)
    assert shares[0] > 0.99
    assert shares[2] < 0.01


def test_a_teacher_that_is_sure_beyond_what_numbers_hold_gives_finite_numbers() -> None:
    student = torch.tensor([[0.0, 0.0]], requires_grad=True)
    loss = weighted_soft_targets(student, torch.tensor([[1e4, 0.0]]), torch.tensor([0]))
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient(loss, student)).all()


@pytest.mark.parametrize("targets", [None, torch.rand(2, 3)])
def test_targets_that_are_no_labels_are_refused(targets) -> None:
    with pytest.raises(ValueError, match="integer labels"):
        weighted_soft_targets(torch.zeros(2, 3), torch.zeros(2, 3), targets)
