"""Values and gradients of softmax_kl on every backend, against float64 formulas written out in full."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import kdx


def truth(student, teacher, temperature, divergence, beta):
    """Row losses in float64 from log-probabilities."""
    log_q = F.log_softmax(student.double() / temperature, -1)
    log_p = F.log_softmax(teacher.double() / temperature, -1)
    q, p = log_q.exp(), log_p.exp()
    if divergence == "forward":
        return (p * (log_p - log_q)).sum(-1)
    if divergence == "reverse":
        return (q * (log_q - log_p)).sum(-1)
    log_m = (beta * p + (1 - beta) * q).log()
    return beta * (p * (log_p - log_m)).sum(-1) + (1 - beta) * (q * (log_q - log_m)).sum(-1)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_both_gradients_match_the_formula(backend_name, require, divergence, dtype):
    require("softmax_kl", backend_name)
    torch.manual_seed(0)
    student = (3 * torch.randn(33, 100)).to(dtype).requires_grad_()
    teacher = (student.detach() + torch.randn(33, 100).to(dtype)).requires_grad_()
    loss = kdx.ops.softmax_kl(student, teacher, temperature=2.0, divergence=divergence, beta=0.3, backend=backend_name)
    grads = torch.autograd.grad(1.7 * loss, (student, teacher))
    s, t = student.detach().double().requires_grad_(), teacher.detach().double().requires_grad_()
    expected = 4 * truth(s, t, 2.0, divergence, 0.3).mean()
    expected_grads = torch.autograd.grad(1.7 * expected, (s, t))
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    assert abs(loss.item() - expected.item()) <= bound * expected.item()
    for grad, want in zip(grads, expected_grads, strict=True):
        assert (grad - want).norm() <= 0.2 * bound * want.norm()
