"""What softmax_kl and kd_loss refuse, and what they say."""

from __future__ import annotations

import pytest
import torch

from kdx.errors import BackendError, UnknownNameError
from kdx.ops import kd_loss, softmax_kl

S, T = torch.zeros(4, 10), torch.ones(4, 10)
Y = torch.arange(4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: softmax_kl(S, T[:, :9]), ValueError, r"teacher: expected the student's shape \(4, 10\), got \(4, 9\)"),
        (lambda: softmax_kl(S, T[:1]), ValueError, "teacher: expected the student's shape"),
        (lambda: softmax_kl(S.long(), T.long()), TypeError, "student: expected floating-point logits, got torch.int64"),
        (lambda: softmax_kl(S, T.int()), TypeError, "teacher: expected floating-point logits, got torch.int32"),
        (lambda: softmax_kl(S, T.to("meta")), ValueError, "teacher: is on meta, the student on cpu"),
        (lambda: softmax_kl(S, T, temperature=0), ValueError, "temperature: expected a finite number above 0, got 0"),
        (lambda: softmax_kl(S, T, temperature=-1.0), ValueError, "temperature: .* got -1.0"),
        (lambda: softmax_kl(S, T, temperature=float("nan")), ValueError, "temperature: .* got nan"),
        (lambda: softmax_kl(S, T, temperature=float("inf")), ValueError, "temperature: .* got inf"),
        (lambda: softmax_kl(S, T, divergence="foward"), ValueError, "divergence: .*'foward'; did you mean 'forward'"),
        (
            lambda: softmax_kl(S, T, divergence="jsd", beta=1.5),
            ValueError,
            r"beta: .* in \[0, 1\], got 1.5",
        ),
        (lambda: softmax_kl(S, T, reduction="avg"), ValueError, "reduction: there is no 'avg'"),
        (lambda: softmax_kl(S, T, dim=2), ValueError, r"dim: expected a dimension of \(4, 10\), got 2"),
        (lambda: softmax_kl(S[:, :0], T[:, :0]), ValueError, "dim: dimension 1 .* has no classes"),
        (lambda: softmax_kl(S[0, 0], T[0, 0]), ValueError, r"dim: expected a dimension of \(\)"),
        (lambda: softmax_kl(S, T, weight=torch.ones(3)), ValueError, r"weight: expected one per row, shape \(4,\)"),
        (lambda: softmax_kl(S, T, weight=Y), TypeError, "weight: expected floating-point"),
        (lambda: softmax_kl(S, T, weight=torch.ones(4, requires_grad=True)), ValueError, "weight: gets no gradient"),
        (lambda: softmax_kl(S, T, weight=torch.ones(4, device="meta")), ValueError, "weight: is on meta"),
        (lambda: softmax_kl(S, T, mask=Y), TypeError, "mask: expected bool, got torch.int64"),
        (lambda: softmax_kl(S, T, mask=Y[:3] > 0), ValueError, "mask: expected one per row"),
        (lambda: kd_loss(S, T, Y, alpha=1.1), ValueError, r"alpha: expected a share in \[0, 1\], got 1.1"),
        (lambda: kd_loss(S, T, Y, alpha=-0.1), ValueError, "alpha: "),
        (lambda: kd_loss(S, T, Y, alpha=float("nan")), ValueError, "alpha: "),
        (lambda: kd_loss(S, T, Y.float()), TypeError, "labels: expected int64 class indices, got torch.float32"),
        (lambda: kd_loss(S, T, Y[:2]), ValueError, "labels: expected one per row"),
        (lambda: kd_loss(S, T, Y + 7), ValueError, r"labels: expected classes in \[0, 10\) .* got 10"),
        (lambda: kd_loss(S, T, Y - 1), ValueError, "labels: expected classes .* got -1"),
        (lambda: kd_loss(S, T, Y, temperature=0.0), ValueError, "temperature: "),
        (lambda: softmax_kl(S, T, backend="gpu"), UnknownNameError, "backend: there is none named 'gpu'; .*reference"),
    ],
)
def test_a_bad_argument_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_label_that_is_ignored_or_masked_may_be_anything():
    labels = torch.tensor([0, -100, 1 << 40, 3])
    mask = torch.tensor([True, True, False, True])
    assert kd_loss(S, T, labels, mask=mask).isfinite()
    with pytest.raises(ValueError, match=r"labels: .* got 1099511627776"):
        kd_loss(S, T, labels)
    assert kd_loss(S, T, labels, ignore_index=1 << 40, mask=labels >= 0).isfinite()


def test_a_label_that_was_not_checked_gives_nan_and_is_no_address(backend):
    """What a GPU or a compiled graph meets: the kernel is called with a label out of range."""
    from kdx.ops import _dispatch

    _, module = _dispatch.select("softmax_kl", backend, S, T)
    labels = torch.tensor([1, 1 << 40, -5, 2])
    for grad in (True, False):
        loss, gradient = module.forward(
            S[..., None], T[..., None], None, labels, torch.ones(4), 1.0, 0, 0.5, 1.0, 1.0, False, grad
        )
        assert loss.flatten().isnan().tolist() == [False, True, True, False]
        if grad:
            assert gradient[..., 0].isnan().any(1).tolist() == [False, True, True, False]


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="backend='triton' cannot run softmax_kl here: "):
        softmax_kl(S, T, backend="triton")
    meta = S.to("meta")
    with pytest.raises(BackendError, match="backend='cpu' cannot run softmax_kl here: "):
        softmax_kl(meta, meta, backend="cpu")
