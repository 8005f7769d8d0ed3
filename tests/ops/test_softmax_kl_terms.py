"""kd_loss with return_terms: both terms of one pass over the logits, with the gradient of any mixture of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdx.ops import kd_loss, softmax_kl

SHAPES = [((7, 10), -1), ((3, 1000), -1), ((2, 5, 4, 3), 1)]


def case(shape, dim, dtype=torch.float32):
    torch.manual_seed(0)
    student, teacher = ((3 * torch.randn(shape)).to(dtype) for _ in range(2))
    rows = student.select(dim, 0).shape
    labels = torch.randint(shape[dim], rows)
    labels.view(-1)[0] = -100
    return student.requires_grad_(), teacher, labels


def wanted(student, teacher, labels, dim, **kinds):
    kl = softmax_kl(student.double(), teacher.double(), dim=dim, temperature=2.0, backend="reference", **kinds)
    return 0.3 * kl, 0.7 * F.cross_entropy(student.double().movedim(dim, 1), labels)


@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
@pytest.mark.parametrize("kinds", [{}, {"divergence": "reverse"}, {"divergence": "jsd", "beta": 0.3}, {"skew": 0.1}])
def test_terms_and_every_mixture_of_their_gradients(backend, shape, dim, kinds):
    student, teacher, labels = case(shape, dim)
    weights = 0.3, torch.tensor(0.7)  # a number, and one that changes during training
    options = {"temperature": 2.0, "dim": dim, "return_terms": True, "weights": weights, "backend": backend}
    found, right = kd_loss(student, teacher, labels, **kinds, **options), wanted(student, teacher, labels, dim, **kinds)
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=0)
    for of_kl, of_ce in [(1.0, 1.0), (2.0, 2.0), (1.0, 0.0), (0.5, 3.0)]:
        one, other = (
            torch.autograd.grad(of_kl * kl + of_ce * ce, student, retain_graph=True)[0] for kl, ce in (found, right)
        )
        assert (one - other).norm() < 2e-6 * other.norm()


def test_their_sum_reads_the_logits_once(monkeypatch):
    from kdx.ops._softmax_kl import cpu

    calls, forward = [], cpu.forward
    monkeypatch.setattr(cpu, "forward", lambda *a, **k: calls.append(k) or forward(*a, **k))
    student, teacher, labels = case((7, 10), -1)
    kl, ce = kd_loss(student, teacher, labels, return_terms=True, backend="cpu")
    (kl + ce).backward()
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(backend, dtype):
    student, teacher, labels = case((5, 130), -1, dtype)
    found = kd_loss(student, teacher, labels, temperature=2.0, return_terms=True, weights=(0.3, 0.7), backend=backend)
    right = wanted(student, teacher, labels, -1)
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=0)
    one, other = (torch.autograd.grad(sum(each), student)[0].double() for each in (found, right))
    assert (one - other).norm() < 4e-3 * other.norm()


def test_a_row_that_no_term_counts_is_nothing_and_a_nan_stays_in_its_row(backend):
    student, teacher, labels = case((6, 10), -1)
    mask = torch.tensor([True, True, False, True, True, True])
    with torch.no_grad():
        student[2] = torch.nan
    kl, ce = kd_loss(student, teacher, labels, mask=mask, return_terms=True, backend=backend)
    (kl + ce).backward()
    assert kl.isfinite()
    assert ce.isfinite()
    assert student.grad[2].abs().sum() == 0
    kl, ce = kd_loss(student, teacher, torch.full_like(labels, -100), mask=~mask, return_terms=True, backend=backend)
    assert ce == 0


def test_second_derivatives_gradients_of_the_teacher_and_transforms():
    student, teacher, labels = (x.double() if x.is_floating_point() else x for x in case((3, 4), -1))
    student, teacher = student.detach().requires_grad_(), teacher.requires_grad_()

    def loss(s, t):
        kl, ce = kd_loss(s, t, labels, temperature=2.0, divergence="jsd", return_terms=True, backend="cpu")
        return kl * ce

    assert torch.autograd.gradcheck(loss, (student, teacher))
    assert torch.autograd.gradgradcheck(loss, (student, teacher))
    one, other = torch.func.grad(loss)(student, teacher), torch.autograd.grad(loss(student, teacher), student)[0]
    torch.testing.assert_close(one, other)


def test_in_a_compiled_graph():
    student, teacher, labels = case((7, 10), -1)

    def loss(s):
        kl, ce = kd_loss(s, teacher, labels, return_terms=True, weights=(0.3, 0.7), backend="cpu")
        return kl + ce

    plain = torch.autograd.grad(loss(student), student)[0]
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(student), student)[0], plain)


def test_weights_that_a_module_holds_break_no_compiled_graph():
    student, teacher, labels = case((7, 10), -1)

    class Loss(torch.nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = weight

        def forward(self, s):
            kl, ce = kd_loss(s, teacher, labels, return_terms=True, weights=(self.weight, 0.5), backend="cpu")
            return kl + ce

    for weight in (0.3, 0.4):  # the second makes it a symbol
        loss = Loss(weight)
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(student), loss(student))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.5}, "alpha: mixes"),
        ({"reduction": "none"}, "reduction: terms are"),
        ({"weights": (1.0, float("nan"))}, "finite"),
        ({"once_differentiable": True}, "once_differentiable"),
    ],
)
def test_options_that_do_not_hold_of_two_terms(options, message):
    with pytest.raises(ValueError, match=message):
        kd_loss(*case((3, 4), -1), return_terms=True, **options)
