"""topk_kl with the weight of its term, keeping nothing but its gradient."""

from __future__ import annotations

import pytest
import torch

from kdx.ops import SparseTargets, topk_kl


def call(dtype=torch.float32, **options):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(6, 50, generator=generator).to(dtype).requires_grad_()
    logprobs, ids = torch.log_softmax(torch.randn(6, 50, generator=generator), -1).topk(3, -1)
    targets = SparseTargets(ids, logprobs, torch.log1p(-logprobs.exp().sum(-1)))
    return student, topk_kl(student, targets, labels=torch.arange(6), alpha=0.5, **options)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_scale_multiplies_both_terms_and_their_gradient(backend, reduction, dtype) -> None:
    (x, found), (y, want) = (
        call(dtype, reduction=reduction, backend=backend, **more)
        for more in ({"scale": 0.5, "once_differentiable": True}, {})
    )
    torch.testing.assert_close(found, 0.5 * want)
    found.sum().backward()
    (0.5 * want.sum()).backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_nothing_but_the_gradient_is_kept() -> None:
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        student, loss = call(once_differentiable=True)
    assert sum(x.numel() for x in kept) == student.numel()
    assert student.data_ptr() not in [x.data_ptr() for x in kept]
    with pytest.raises(RuntimeError, match="topk_kl: create_graph=True"):
        torch.autograd.grad(loss, student, create_graph=True)


def test_a_scale_is_a_finite_number() -> None:
    with pytest.raises(ValueError, match="scale: expected a finite number"):
        call(scale=float("inf"))
