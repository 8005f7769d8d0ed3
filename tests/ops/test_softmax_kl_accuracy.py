"""float32 against float64 where teacher and student are close, spread out or far apart: the budget of every backend."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from kdx.ops import kd_loss, softmax_kl
from kdx.ops._softmax_kl import reference
from tests.ops.truth import softmax_kl_row

N, C = 64, 1000
LOSS = {0.1: 1e-5, 3.0: 1e-5, 30.0: 1e-5}
GRADIENT = {0.1: 2e-6, 3.0: 2e-6, 30.0: 2e-5}


def near_pair(std: float, gap: float, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    student = std * torch.randn(N, C, generator=generator, dtype=torch.float64)
    teacher = student + gap * torch.randn(N, C, generator=generator, dtype=torch.float64)
    return student.to(dtype), teacher.to(dtype)


@cache  # the same for every backend
def truth(std, gap, temperature, divergence, dtype=torch.float32):
    """Batch loss and gradient in float64. The reference in float64 is itself held to 1e-9 of a naive form below."""
    student, teacher = near_pair(std, gap, dtype)
    s = student.double().requires_grad_()
    loss = softmax_kl(s, teacher.double(), temperature=temperature, divergence=divergence, backend="reference")
    return loss.detach(), torch.autograd.grad(loss, s)[0]


@pytest.mark.quick(backend="triton", temperature=[4.0], gap=[1e-2], std=[3.0])  # three seconds a case
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("gap", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("std", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_float32_stays_within_the_budget(backend, divergence, std, gap, temperature):
    student, teacher = near_pair(std, gap)
    student.requires_grad_()
    want, want_grad = truth(std, gap, temperature, divergence)
    loss = softmax_kl(student, teacher, temperature=temperature, divergence=divergence, backend=backend)
    (grad,) = torch.autograd.grad(loss, student)
    assert abs(loss.item() - want.item()) <= LOSS[std] * want.item()
    assert (grad - want_grad).norm() <= GRADIENT[std] * want_grad.norm()


@pytest.mark.quick(backend="triton")  # ten seconds a case; the next test has a spread of 300 in a small one
@pytest.mark.parametrize("gap", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_no_row_is_ever_negative_and_everything_is_finite_at_a_spread_of_300(backend, divergence, gap):
    for std in (0.1, 3.0, 30.0, 300.0):
        student, teacher = near_pair(std, gap)
        if backend == "triton" and not torch.cuda.is_available():  # its interpreter takes a second for eight rows
            student, teacher = student[::8].clone(), teacher[::8].clone()
        student.requires_grad_()
        rows = softmax_kl(student, teacher, divergence=divergence, reduction="none", backend=backend)
        (grad,) = torch.autograd.grad(rows.sum(), student)
        assert rows.min() >= 0
        assert rows.isfinite().all()
        assert grad.isfinite().all()


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_rows_that_have_nothing_in_common_stay_finite(backend, divergence):
    generator = torch.Generator().manual_seed(1)
    student = (300 * torch.randn(8, 100, generator=generator)).requires_grad_()
    teacher = 300 * torch.randn(8, 100, generator=generator)
    rows = softmax_kl(student, teacher, divergence=divergence, reduction="none", backend=backend)
    (grad,) = torch.autograd.grad(rows.sum(), student)
    s = student.detach().double().requires_grad_()
    want = softmax_kl(s, teacher.double(), divergence=divergence, reduction="none", backend="reference")
    assert torch.allclose(rows.double(), want, rtol=1e-5, atol=0)
    assert (grad - torch.autograd.grad(want.sum(), s)[0]).abs().max() <= 2e-5 * max(1.0, want.max().item())


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("gap", [1.0, 1e-2])
def test_the_reference_in_float64_agrees_with_log_probabilities(divergence, gap):
    student, teacher = near_pair(3.0, gap, torch.float64)
    log_q, log_p = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    if divergence == "reverse":
        log_q, log_p = log_p, log_q
    if divergence == "jsd":
        log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0, dtype=torch.float64))
        want = (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1).mean() / 2
    else:
        want = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    loss = softmax_kl(student, teacher, divergence=divergence, backend="reference")
    assert abs(loss.item() - want.item()) <= 1e-9 * want.item()


@pytest.mark.quick(backend="triton")
def test_bfloat16_logits_are_not_rounded_again(backend):
    """A peer that rounds probabilities to bfloat16 is off by percents; here only the gradient's own rounding shows."""
    student, teacher = near_pair(3.0, 0.1, torch.bfloat16)
    student.requires_grad_()
    want, want_grad = truth(3.0, 0.1, 2.0, "forward", torch.bfloat16)
    loss = softmax_kl(student, teacher, temperature=2.0, backend=backend)
    (grad,) = torch.autograd.grad(loss, student)
    assert abs(loss.item() - want.item()) <= 1e-5 * want.item()
    assert (grad - want_grad).norm() <= 2.0**-8 * want_grad.norm()


@pytest.mark.quick(backend="triton")
def test_scaling_by_the_upstream_gradient_rounds_once(backend):
    student, teacher = near_pair(3.0, 1.0, torch.bfloat16)
    student.requires_grad_()
    upstream = 1 + 2.0**-10  # bfloat16 would round it to 1
    grads = [
        torch.autograd.grad(softmax_kl(student, teacher, reduction="sum", backend=backend) * u, student)[0].double()
        for u in (1.0, upstream)
    ]
    want = (grads[0] * upstream).to(torch.bfloat16).double()
    assert torch.equal(grads[1], want)


@pytest.mark.quick(backend="triton")
def test_cross_entropy_in_kd_loss_keeps_its_digits(backend):
    student, teacher = near_pair(3.0, 1e-2)
    labels = torch.arange(N)
    student.requires_grad_()
    loss = kd_loss(student, teacher, labels, temperature=4.0, alpha=0.5, backend=backend)
    (grad,) = torch.autograd.grad(loss, student)
    s = student.detach().double().requires_grad_()
    call = (teacher.double()[..., None], None, labels, torch.full((N,), 1 / N, dtype=torch.float64), 4.0)
    want = reference.losses(s[..., None], *call, reference.FORWARD, 0.5, 8.0 / N, 0.5).sum()
    assert abs(loss.item() - want.item()) <= 1e-6 * want.item()
    assert (grad - torch.autograd.grad(want, s)[0]).norm() <= 2e-6 * grad.norm()


# Student and teacher in units of the scale; what is compared is a few units, which rounding t - s would swallow.
EXTREME = {
    "all equal beside one that leads": ([1.0] * 7, [1.0, 0, 0, 0, 0, 0, 0], 1e10),
    "huge beside small": ([1.0, 0.5, -1.0, 0.25], [3e-10, 1e-10, 2e-10, -1e-10], 1e10),
    "of opposite sign": ([1.0, 1.0, 1.0], [-1.0, -1.0, -1.0], 1e10),
    "a million": ([1.0] * 5, [1e-6, 2e-6, 3e-6, 2.5e-6, 0.0], 1e6),
    "almost too large": ([1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], 1e38),
}


@pytest.mark.parametrize("case", EXTREME)
@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_huge_logits_lose_nothing_to_the_distance_of_teacher_and_student(backend, divergence, case):
    """At 1e10 float32 has steps of 1024: what remains of t - s beside them is not what log p - log q needs."""
    s, t, scale = EXTREME[case]
    student, teacher = (scale * torch.tensor([x], dtype=torch.float32) for x in (s, t))
    want = softmax_kl_row(*(x[0].double().numpy() for x in (student, teacher)), 1.0, divergence, 0.5, 2.0**-24)
    student.requires_grad_()
    loss = softmax_kl(student, teacher, divergence=divergence, backend=backend)
    (grad,) = torch.autograd.grad(loss, student)
    if want.loss > torch.finfo(torch.float32).max:
        assert loss.item() == torch.inf
        return
    assert abs(loss.item() - want.loss) <= want.loss_error
    assert (abs(grad[0].numpy() - want.grad) <= want.grad_error + 1e-37).all()


def test_cross_entropy_of_huge_logits_keeps_the_logarithm_of_the_sum(backend):
    student = torch.full((1, 7), 1e10).requires_grad_()
    loss = kd_loss(student, student.detach(), torch.tensor([3]), alpha=0.0, backend=backend)
    assert loss.item() == pytest.approx(math.log(7), rel=1e-6)
    grad = torch.autograd.grad(loss, student)[0]
    assert grad[0].numpy() == pytest.approx([1 / 7] * 3 + [-6 / 7] + [1 / 7] * 3, rel=1e-6)
