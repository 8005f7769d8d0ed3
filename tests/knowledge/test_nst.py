"""NST against an oracle that sums the kernel over pairs of channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdx.capture import Captured
from kdx.knowledge.nst import NST, nst


def oracle(student, teacher):
    def rows(feature):
        flat = np.asarray(feature, np.float64).reshape(feature.shape[0], feature.shape[1], -1)
        norm = np.sqrt((flat**2).sum(2, keepdims=True))
        return np.divide(flat, norm, out=np.zeros_like(flat), where=norm > 0)

    def kernel(a, b):
        return np.mean([[(x @ y) ** 2 for y in b] for x in a])

    pairs = zip(rows(student), rows(teacher), strict=True)
    return np.mean([kernel(s, s) + kernel(t, t) - 2 * kernel(s, t) for s, t in pairs])


@pytest.mark.parametrize("shape", [(2, 3, 4, 4, 5), (2, 9, 2, 2, 7), (1, 2, 1, 1, 3), (3, 1, 3, 2, 1)])
def test_nst_has_the_value_of_the_oracle_by_either_route(random, shape):
    n, c_s, h, w, c_t = shape
    s, t = random(n, c_s, h, w, seed=1), random(n, c_t, h, w, seed=2)
    assert nst(s, t).item() == pytest.approx(oracle(s, t), rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("pixels", [2, 6])
def test_nst_gives_a_dead_channel_no_gradient_and_no_nan(random, pixels):
    s, t = random(2, 4, pixels, pixels, seed=1), random(2, 5, pixels, pixels, seed=2)
    s[:, 1] = 0
    t[1, :] = 0
    s.requires_grad_()
    loss = nst(s, t)
    assert loss.item() == pytest.approx(oracle(s.detach(), t), rel=1e-10)
    loss.backward()
    assert torch.isfinite(s.grad).all()
    assert s.grad[:, 1].abs().max() == 0
    assert s.grad[:, 0].abs().max() > 0


@pytest.mark.parametrize("pixels", [2, 6])
def test_nst_passes_every_component_check(random, check_component, pixels):
    s, t = {"a": random(3, 4, pixels, pixels, seed=1)}, {"a": random(3, 6, pixels, pixels, seed=2)}
    check_component(NST(student="a", teacher="a"), s, t)


@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (2, 2, 3, 3)])
def test_nst_gradient_is_right_in_float64(random, shape):
    s, t = random(*shape, seed=3).requires_grad_(), random(*shape, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(nst, (s, t))


@pytest.mark.parametrize("pixels", [2, 6])
def test_nst_ignores_channel_order_and_scale_and_is_zero_for_equal_maps(random, pixels):
    s, t = random(3, 4, pixels, pixels, seed=5), random(3, 6, pixels, pixels, seed=6)
    torch.testing.assert_close(nst(7 * s.flip(1), 0.1 * t.roll(1, 1)), nst(s, t), rtol=1e-10, atol=0)
    assert abs(nst(t, t.flip(1)).item()) < 1e-14


@pytest.mark.parametrize(("c_s", "c_t", "pixels"), [(64, 256, 8), (16, 24, 32)])
def test_nst_never_holds_more_than_its_docstring_says(peak_bytes, c_s, c_t, pixels):
    n = 4
    s, t = torch.randn(n, c_s, pixels, pixels, requires_grad=True), torch.randn(n, c_t, pixels, pixels)
    kernel = n * min(2 * pixels**4, c_s**2 + c_t**2 + c_s * c_t)
    copies = 2 * n * (c_s + c_t) * pixels**2
    naive = n * c_t * c_t * pixels**2
    peak = peak_bytes(lambda: nst(s, t).backward()) / 4
    assert peak <= 2 * kernel + 2 * copies + 1e4
    assert peak < naive / 2


def test_nst_sums_over_layers_and_pools_the_larger_map(random):
    s = {"a": random(2, 3, 4, 4, seed=1), "b": random(2, 3, 2, 2, seed=2)}
    t = {"a": random(2, 5, 2, 2, seed=3), "b": random(2, 4, 2, 2, seed=4)}
    pooled = s["a"].reshape(2, 3, 2, 2, 2, 2).mean((3, 5))
    loss = NST(student=("a", "b"), teacher=("a", "b"))(Captured(s), Captured(t), None)
    assert loss.item() == pytest.approx(oracle(pooled, t["a"]) + oracle(s["b"], t["b"]), rel=1e-10)
