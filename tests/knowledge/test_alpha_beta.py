"""Alpha-beta divergence: its definition and limits in double precision, exactness near agreement, missing classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from kdx.capture import Captured
from kdx.knowledge.alpha_beta import AlphaBeta, alpha_beta
from kdx.ops import softmax_kl

CORNERS = [(0.2, 0.7), (0.5, 0.5), (1.0, 1.0), (0.8, 0.3), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.4, 0.0), (0.0, 0.6)]


def by_definition(s: np.ndarray, t: np.ndarray, alpha: float, beta: float) -> float:
    """The divergence as it is written in the paper; where it divides by 0 its limit, by Richardson's extrapolation."""
    if alpha * beta == 0:
        h = 1e-4
        steps = [(max(alpha, each), max(beta, each)) for each in (h, h / 2, h / 4)]
        one, two, three = (by_definition(s, t, *step) for step in steps)
        return (8 * three - 6 * two + one) / 3
    q, p = (np.exp(z - z.max(1, keepdims=True)) for z in (s, t))
    q, p = q / q.sum(1, keepdims=True), p / p.sum(1, keepdims=True)
    both = alpha + beta
    each = p**alpha * q**beta - alpha / both * p**both - beta / both * q**both
    return float(-each.sum(1).mean() / (alpha * beta))


@pytest.mark.parametrize(("alpha", "beta"), CORNERS)
def test_the_value_is_that_of_the_definition(random, alpha, beta) -> None:
    s, t = random(6, 9, seed=1, std=2.0), random(6, 9, seed=2, std=2.0)
    expected = by_definition(s.numpy(), t.numpy(), alpha, beta)
    assert alpha_beta(s, t, alpha=alpha, beta=beta).item() == pytest.approx(
        expected, rel=1e-10 if alpha * beta else 1e-6
    )
    of_t = alpha_beta(2.5 * s, 2.5 * t, alpha=alpha, beta=beta, temperature=2.5)
    assert of_t.item() == pytest.approx(6.25 * expected, rel=1e-10 if alpha * beta else 1e-6)


def test_the_corners_are_the_kls_and_other_known_distances(random) -> None:
    s, t = random(6, 9, seed=1, std=2.0), random(6, 9, seed=2, std=2.0)
    q, p = s.softmax(1), t.softmax(1)
    for numbers, expected in (
        ((1.0, 0.0), softmax_kl(s, t)),
        ((0.0, 1.0), softmax_kl(s, t, divergence="reverse")),
        ((0.0, 0.0), (p.log() - q.log()).square().sum(1).mean() / 2),
        ((0.5, 0.5), 4 * (1 - (p * q).sqrt().sum(1)).mean()),
        ((1.0, 1.0), (p - q).square().sum(1).mean() / 2),
    ):
        torch.testing.assert_close(alpha_beta(s, t, alpha=numbers[0], beta=numbers[1]), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("alpha", "beta"), CORNERS)
@pytest.mark.parametrize("distance", [3.0, 1e-1, 1e-3])
def test_gradients(random, alpha, beta, distance) -> None:
    t = random(4, 5, seed=1, std=2.0)
    s = (t + distance * random(4, 5, seed=2)).requires_grad_()
    of = lambda z: alpha_beta(z, t, alpha=alpha, beta=beta, temperature=2.0)  # noqa: E731
    assert gradcheck(of, (s,), atol=1e-9)
    (found,) = torch.autograd.grad(of(s), s)
    assert found.sum(1).abs().max() < 1e-12  # a shift of a row changes nothing


@pytest.mark.parametrize(("alpha", "beta"), CORNERS)
@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-4])
def test_float32_is_right_at_any_distance_and_never_negative(random, alpha, beta, distance) -> None:
    t = random(32, 500, seed=1, std=3.0).float()
    s = (t + distance * random(32, 500, seed=2).float()).requires_grad_()
    loss = alpha_beta(s, t, alpha=alpha, beta=beta)
    wide = s.detach().double().requires_grad_()
    expected = alpha_beta(wide, t.double(), alpha=alpha, beta=beta)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (found,), (wanted,) = torch.autograd.grad(loss, s), torch.autograd.grad(expected, wide)
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    assert min(alpha_beta(a[None], b[None], alpha=alpha, beta=beta) for a, b in zip(s, t, strict=True)) >= 0
    assert alpha_beta(t, t, alpha=alpha, beta=beta) == 0


def test_classes_that_do_not_exist_add_nothing_and_those_of_one_side_their_limit(random) -> None:
    s, t = random(4, 6, seed=1), random(4, 6, seed=2)
    more = torch.full((4, 2), -torch.inf, dtype=torch.float64)
    for alpha, beta in CORNERS:
        padded = torch.cat([s, more], 1).requires_grad_()
        loss = alpha_beta(padded, torch.cat([t, more], 1), alpha=alpha, beta=beta)
        torch.testing.assert_close(loss, alpha_beta(s, t, alpha=alpha, beta=beta), rtol=1e-12, atol=0)
        loss.backward()
        assert padded.grad.isfinite().all()
    s = torch.tensor([[0.0, 0.0, -torch.inf]], dtype=torch.float64)
    t = torch.tensor([[0.0, 0.0, 0.0]], dtype=torch.float64)
    for one, other in ((s, t), (t, s)):
        q, p = one.softmax(1), other.softmax(1)
        expected = -(p**0.2 * q**0.7 - 2 / 9 * p**0.9 - 7 / 9 * q**0.9).sum() / 0.14
        torch.testing.assert_close(alpha_beta(one, other), expected, rtol=1e-12, atol=0)
    assert alpha_beta(s, t, alpha=1.0, beta=0.0) == math.inf
    torch.testing.assert_close(alpha_beta(t, s, alpha=1.0, beta=0.0), softmax_kl(t, s), rtol=1e-12, atol=0)


def test_rows_that_do_not_count_are_not_read(random) -> None:
    s, t = random(2, 3, 7, seed=1), random(2, 3, 7, seed=2)
    mask = torch.tensor([[True, False, True], [False, True, True]])
    expected = alpha_beta(s[mask], t[mask])
    s, t = (z.masked_fill(~mask.unsqueeze(2), torch.nan) for z in (s, t))
    s.requires_grad_()
    loss = alpha_beta(s, t, mask=mask)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    assert s.grad[mask].isfinite().all()
    assert not s.grad[~mask].any()
    assert alpha_beta(s, t, mask=torch.zeros_like(mask)) == 0


def test_numbers_out_of_range_and_a_second_derivative_are_refused(random) -> None:
    with pytest.raises(ValueError, match="alpha"):
        AlphaBeta(-0.1, 0.5)
    s = random(2, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(alpha_beta(s, 2 * s.detach()), s, create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not require grad|once_differentiable"):
        gradient.sum().backward()


def test_a_gradient_in_float16_is_rounded_behind_the_loss_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    s, t = torch.randn(512, 200, generator=generator), torch.randn(512, 200, generator=generator)
    found = []
    for dtype in (torch.float32, torch.float16):
        student = s.half().to(dtype).requires_grad_()
        loss = AlphaBeta()(Captured({"logits": student}), Captured({"logits": t.half().to(dtype)}), None)
        (loss * 65536).backward()
        found.append(student.grad.float())
    assert (found[1] - found[0]).norm() < 1e-3 * found[0].norm()
