"""Adaptive KL: its weights and its value by definition, and that the weights have no gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdx.knowledge.adaptive_kl import AdaptiveKL, adaptive_kl
from kdx.ops import softmax_kl


def by_definition(
    s: np.ndarray, t: np.ndarray, temperature: float, mu: float, variant: str
) -> tuple[float, list[float]]:
    """The loss, class by class in double precision, and the weights of the forward KL."""
    found, weights = [], []
    for z_s, z_t in zip(s / temperature, t / temperature, strict=True):
        q, p = (np.exp(z - z.max()) / np.exp(z - z.max()).sum() for z in (z_s, z_t))
        head, total = set(), 0.0
        for number, place in enumerate(np.argsort(-p)):
            if number and (total >= mu if variant == "paper" else total + p[place] > mu):
                break
            head.add(int(place))
            total += p[place]
        gap = np.abs(p - q)
        weight = sum(gap[list(head)]) / gap.sum()
        weights.append(weight)
        found.append(weight * (p * np.log(p / q)).sum() + (1 - weight) * (q * np.log(q / p)).sum())
    return temperature**2 * float(np.mean(found)), weights


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("mu", [0.2, 0.5, 0.9])
def test_value_and_gradient_are_those_of_the_definition(random, temperature, variant, mu) -> None:
    s, t = random(9, 13, seed=1, std=2.0).requires_grad_(), random(9, 13, seed=2, std=2.0)
    expected, weights = by_definition(s.detach().numpy(), t.numpy(), temperature, mu, variant)
    loss = adaptive_kl(s, t, temperature=temperature, head=mu, variant=variant)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    w, options = torch.tensor(weights, dtype=torch.float64), {"temperature": temperature, "reduction": "none"}
    fixed = w * softmax_kl(s, t, **options) + (1 - w) * softmax_kl(s, t, divergence="reverse", **options)
    (found,), (wanted,) = torch.autograd.grad(loss, s), torch.autograd.grad(fixed.mean(), s)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)


def test_the_variants_differ_in_the_class_that_crosses_the_threshold() -> None:
    t = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log()
    s = torch.tensor([[0.3, 0.1, 0.3, 0.3]], dtype=torch.float64).log()
    forward, reverse = softmax_kl(s, t), softmax_kl(s, t, divergence="reverse")
    for variant, share in (("paper", 3 / 6), ("code", 1 / 6)):
        expected = share * forward + (1 - share) * reverse
        torch.testing.assert_close(adaptive_kl(s, t, variant=variant), expected, rtol=1e-12, atol=0)


def test_rows_that_do_not_count_are_not_read(random) -> None:
    s, t = random(2, 3, 7, seed=1), random(2, 3, 7, seed=2)
    mask = torch.tensor([[True, False, True], [False, True, True]])
    expected = adaptive_kl(s[mask], t[mask])
    s, t = (z.masked_fill(~mask.unsqueeze(2), torch.nan).requires_grad_() for z in (s, t))
    loss = adaptive_kl(s, t, mask=mask)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    assert s.grad[mask].isfinite().all()
    assert not s.grad[~mask].any()
    assert adaptive_kl(s, t, mask=torch.zeros_like(mask)) == 0


@pytest.mark.parametrize("distance", [1e-2, 1e-4])
def test_float32_is_right_near_agreement(random, distance) -> None:
    t = random(64, 500, seed=1, std=3.0).float()
    s = t + distance * random(64, 500, seed=2).float()
    expected = adaptive_kl(s.double(), t.double())
    assert adaptive_kl(s, t).item() == pytest.approx(expected.item(), rel=2e-3)
    assert adaptive_kl(t, t) == 0


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="head"):
        AdaptiveKL(head=1.0)
    with pytest.raises(ValueError, match="variant"):
        AdaptiveKL(variant="other")
