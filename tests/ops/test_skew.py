"""Skewed KLs on every backend: KL(p || s p + (1 - s) q) and KL(q || s q + (1 - s) p), against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdx.errors import BackendError
from kdx.ops import SparseTargets, linear_kl, softmax_kl, topk_kl
from kdx.ops._native import override

ROWS, CLASSES = 9, 33


def apart(found: torch.Tensor, want: torch.Tensor) -> float:
    return float((found.double() - want.double()).norm() / want.double().norm().clamp(min=1e-300))


def skewed(z_s, z_t, divergence: str, skew: float, temperature: float = 1.0) -> torch.Tensor:
    """Rows ``[N]``, each class's share without the difference that cancels; autograd differentiates it."""
    log_q, log_p = F.log_softmax(z_s / temperature, -1), F.log_softmax(z_t / temperature, -1)
    if divergence == "reverse":
        log_p, log_q = log_q, log_p
    ratio = log_q - log_p  # log(m / p) = log(s + (1 - s) q / p)
    w = torch.log1p((1 - skew) * torch.expm1(ratio))
    return (log_p.exp() * (torch.expm1(w) - w)).sum(-1)


def logits(gap: float | None = None, std: float = 3.0):
    generator = torch.Generator().manual_seed(3)
    z_s, z_t = (std * torch.randn(ROWS, CLASSES, generator=generator) for _ in "12")
    z_t = z_t if gap is None else z_s + gap * z_t / std
    return z_s.requires_grad_(), z_t


@pytest.mark.parametrize("skew", [0.1, 0.7])
@pytest.mark.parametrize("gap", [None, 1e-1, 1e-3])
@pytest.mark.parametrize("divergence", ["forward", "reverse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_loss_and_gradient_far_from_and_near_agreement(backend, dtype, divergence, gap, skew) -> None:
    if dtype == torch.float64 and backend == "triton":
        pytest.skip("no float64 kernel")
    z_s, z_t = (z.detach().to(dtype) for z in logits(gap))
    z_s.requires_grad_()
    loss = softmax_kl(z_s, z_t, divergence=divergence, skew=skew, temperature=2.0, reduction="sum", backend=backend)
    wide = z_s.detach().double().requires_grad_()
    want = 4 * skewed(wide, z_t.double(), divergence, skew, 2.0).sum()
    room = {torch.float32: 3e-6, torch.bfloat16: 3e-6, torch.float64: 1e-12}[dtype]
    room *= 1 if gap is None or dtype == torch.bfloat16 else max(1.0, 0.02 / gap)  # logits share their offset's digits
    assert loss.item() == pytest.approx(want.item(), rel=room)
    (found,), (right,) = torch.autograd.grad(loss, z_s), torch.autograd.grad(want, wide)
    assert apart(found, right) < (3e-3 if dtype == torch.bfloat16 else room)


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_no_skew_is_the_plain_divergence_to_the_bit(backend, divergence) -> None:
    z_s, z_t = logits()
    plain, zero = (softmax_kl(z_s, z_t, divergence=divergence, backend=backend, **more) for more in ({}, {"skew": 0.0}))
    assert plain.equal(zero)
    assert torch.autograd.grad(plain, z_s)[0].equal(torch.autograd.grad(zero, z_s)[0])
    barely = softmax_kl(z_s, z_t, divergence=divergence, backend=backend, skew=1e-6)
    assert barely.item() == pytest.approx(plain.item(), rel=1e-3)


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_rows_are_never_negative_and_zero_at_agreement(backend, divergence) -> None:
    z_s, _ = logits(std=10.0)
    near = z_s.detach() + 1e-6 * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(1))
    rows = softmax_kl(z_s, near, divergence=divergence, skew=0.3, reduction="none", backend=backend)
    assert (rows >= 0).all()
    same = softmax_kl(z_s, z_s.detach(), divergence=divergence, skew=0.3, backend=backend)
    assert same.item() == 0
    assert not torch.autograd.grad(same, z_s)[0].any()


@pytest.mark.parametrize(("divergence", "side"), [("forward", 0), ("reverse", 1)])
def test_a_class_that_one_side_lacks_leaves_it_finite(backend, divergence, side) -> None:
    both = [z.detach().clone() for z in logits()]
    both[side][:, 4] = float("-inf")
    both[0][:, 5] = both[1][:, 5] = float("-inf")
    z_s = both[0].requires_grad_()
    loss = softmax_kl(z_s, both[1], divergence=divergence, skew=0.25, reduction="sum", backend=backend)
    kept = [z.detach().double().masked_fill(z.isneginf(), -1e4) for z in both]
    wide = kept[0].requires_grad_()
    want = skewed(wide, kept[1], divergence, 0.25).sum()
    assert loss.item() == pytest.approx(want.item(), rel=3e-6)
    (found,), (right,) = torch.autograd.grad(loss, z_s), torch.autograd.grad(want, wide)
    assert found.isfinite().all()
    assert apart(found, right) < 3e-6


@pytest.mark.parametrize("classes", [1, 16, 1001, 40000])
def test_every_kernel_of_a_backend_has_it(backend, classes) -> None:
    if classes > 2000 and backend == "triton":
        classes = 8200  # more than one tile, in an interpreter that takes its time
    generator = torch.Generator().manual_seed(0)
    z_s, z_t = (2 * torch.randn(3, classes, generator=generator) for _ in "12")
    z_s.requires_grad_()
    for divergence in ("forward", "reverse"):
        loss = softmax_kl(z_s, z_t, divergence=divergence, skew=0.4, reduction="sum", backend=backend)
        wide = z_s.detach().double().requires_grad_()
        want = skewed(wide, z_t.double(), divergence, 0.4).sum()
        assert loss.item() == pytest.approx(want.item(), rel=5e-6, abs=1e-12)
        assert apart(torch.autograd.grad(loss, z_s)[0], torch.autograd.grad(want, wide)[0]) < 5e-6 or classes == 1


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_derivatives_with_respect_to_both_sides(divergence) -> None:
    z_s, z_t = (z.detach()[:2, :5].double().requires_grad_() for z in logits())

    def loss(s, t):
        return softmax_kl(s, t, divergence=divergence, skew=0.3, temperature=2.0)

    assert torch.autograd.gradcheck(loss, (z_s, z_t))
    assert torch.autograd.gradgradcheck(loss, (z_s, z_t))
    s, t = (z.detach().float().requires_grad_() for z in (z_s, z_t))
    found = torch.autograd.grad(softmax_kl(s, t, divergence=divergence, skew=0.3, reduction="sum"), (s, t))
    right = torch.autograd.grad(skewed(z_s, z_t, divergence, 0.3).sum(), (z_s, z_t))
    assert max(apart(a, b) for a, b in zip(found, right, strict=True)) < 3e-6


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_heads_and_few_classes_have_it_too(backend, divergence) -> None:
    generator = torch.Generator().manual_seed(0)
    x_s, w_s, x_t, w_t = (torch.randn(n, 8, generator=generator) for n in (ROWS, CLASSES, ROWS, CLASSES))
    options = {"divergence": divergence, "skew": 0.2}
    dense = softmax_kl(x_s @ w_s.T, x_t @ w_t.T, **options)
    assert linear_kl(x_s, w_s, x_t, w_t, **options, backend=backend).item() == pytest.approx(dense.item(), rel=1e-5)
    logprobs, ids = F.log_softmax(x_t @ w_t.T, -1).topk(CLASSES, -1)
    every = topk_kl(x_s @ w_s.T, SparseTargets(ids, logprobs), **options, backend=backend)
    assert every.item() == pytest.approx(dense.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skew": 1.0}, r"skew: expected a number in \[0, 1\), got 1.0"),
        ({"skew": 0.5, "divergence": "jsd"}, "skew: is of 'forward' and 'reverse' KL; of 'jsd', beta"),
    ],
)
def test_bad_skew_is_a_sentence(options, message) -> None:
    z_s, z_t = logits()
    with pytest.raises(ValueError, match=message):
        softmax_kl(z_s, z_t, **options)


def test_kernels_of_older_sources_are_not_asked_for_it() -> None:
    class Old:
        __name__ = "kdx_ext._cpu"

    with override("cpu", Old()), pytest.raises(BackendError, match=r"kdx_ext\._cpu: was built of older sources"):
        softmax_kl(*logits(), skew=0.1, backend="cpu")
