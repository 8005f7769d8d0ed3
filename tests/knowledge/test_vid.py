"""VID against an oracle; the variance is trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdx.capture import Captured
from kdx.knowledge.vid import VID, vid


def oracle(mean, teacher, variance, variant):
    mean, teacher = np.asarray(mean, np.float64), np.asarray(teacher, np.float64)
    variance = np.asarray(variance, np.float64).reshape(1, -1, *[1] * (mean.ndim - 2))
    terms = 0.5 * ((mean - teacher) ** 2 / variance + np.log(variance))
    return terms.mean() if variant == "code" else terms.reshape(len(terms), -1).sum(1).mean()


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("shape", [(3, 4, 2, 5), (1, 2, 1, 1), (4, 6)])
def test_vid_has_the_value_of_the_oracle(random, variant, shape):
    mean, t, variance = random(*shape, seed=1), random(*shape, seed=2), random(shape[1], seed=3).exp()
    assert vid(mean, t, variance=variance, variant=variant).item() == pytest.approx(
        oracle(mean, t, variance, variant), rel=1e-12
    )


def test_vid_of_tokens_has_a_variance_per_channel_not_per_token(random):
    mean, t, variance = random(2, 3, 5, seed=1), random(2, 3, 5, seed=2), torch.tensor([0.5, 1.0, 2.0]).double()
    assert vid(mean, t, variance=variance).item() == pytest.approx(oracle(mean, t, variance, "code"), rel=1e-12)
    with pytest.raises(ValueError, match="variance: expected one value per channel"):
        vid(mean.mT, t.mT, variance=variance)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_vid_gradient_is_right_in_float64_for_mean_teacher_and_variance(random, variant):
    inputs = random(2, 3, 2, 2, seed=1), random(2, 3, 2, 2, seed=2), random(3, seed=3).exp()
    leaves = [value.requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(lambda m, t, v: vid(m, t, variance=v, variant=variant), leaves)


@pytest.fixture
def component(random):
    component = VID(student=("a", "b"), teacher=("a", "b"))
    s = {"a": random(3, 4, 8, 8, seed=1), "b": random(3, 5, seed=2)}
    t = {"a": random(3, 6, 4, 4, seed=3), "b": random(3, 7, seed=4)}
    torch.manual_seed(0)
    component.setup(Captured(s), Captured(t))
    return component, s, t


def test_vid_passes_every_component_check(component, check_component):
    check_component(*component)


def test_vid_starts_at_variance_five_with_three_convolutions(component):
    vid_, s, t = component
    for pair in (0, 1):
        torch.testing.assert_close(vid_.variance_of(pair), torch.full_like(vid_.variance_of(pair), 5.0))
    assert [layer.weight.shape[:2] for layer in vid_.means[0][::2]] == [(6, 4), (6, 6), (6, 6)]
    pooled = torch.nn.functional.adaptive_avg_pool2d(s["a"], 4)
    with torch.no_grad():
        expected = oracle(vid_.means[0](pooled), t["a"], [5.0] * 6, "code")
        expected += oracle(vid_.means[1](s["b"]), t["b"], [5.0] * 7, "code")
        assert vid_(Captured(s), Captured(t), None).item() == pytest.approx(expected, rel=1e-9)


def test_vid_variance_is_trained_towards_the_squared_error(component):
    vid_, s, t = component
    optimizer = torch.optim.Adam(vid_.alphas.parameters(), lr=0.5)
    for step in range(80):
        optimizer.zero_grad()
        vid_(Captured(s), Captured(t), None).backward()
        assert step > 0 or all(alpha.grad.abs().min() > 0 for alpha in vid_.alphas)
        optimizer.step()
    with torch.no_grad():
        best = (vid_.means[1](s["b"]) - t["b"]).square().mean(0)
        torch.testing.assert_close(vid_.variance_of(1), best, rtol=0.02, atol=1e-3)
    assert {"alphas.0", "alphas.1"} <= set(vid_.state_dict())


def test_vid_rejects_a_variance_it_cannot_start_from():
    with pytest.raises(ValueError, match="variance must be"):
        VID(student="a", teacher="a", variance=0.0)
