"""Squared distances on every backend, and their two derivatives."""

from __future__ import annotations

import pytest
import torch

from kdx.ops import pairwise_sq_dist

OP = "pairwise_sq_dist"


@pytest.mark.quick(backend="triton", d=[0, 1, 2, 3])
@pytest.mark.parametrize(("n", "m", "d"), [(0, 3, 2), (3, 0, 2), (1, 1, 1), (2, 5, 3), (33, 17, 512), (20, 65, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_are_those_of_float64(backend, n, m, d, dtype):
    x, y = torch.randn(n, d).to(dtype), torch.randn(m, d).to(dtype)
    square = pairwise_sq_dist(x, y, backend=backend)
    exact = (x.double()[:, None] - y.double()[None]).square().sum(-1)
    assert square.dtype == torch.float32
    assert square.shape == (n, m)
    torch.testing.assert_close(square.double(), exact, rtol=1e-6, atol=0)


def test_one_set_of_points_has_a_zero_diagonal_and_is_symmetric(backend):
    x = 1e3 + torch.randn(40, 7)
    square = pairwise_sq_dist(x, backend=backend)
    assert torch.equal(square.diagonal(), torch.zeros(40))
    assert torch.equal(square, square.T)
    assert (square >= 0).all()


def test_strided_points_are_read_in_place(backend):
    base = torch.randn(30, 40)
    x, y = base[::3, 1::2], base.T[:5, 10:30]
    plain = pairwise_sq_dist(x.clone(), y.clone(), backend="reference")
    torch.testing.assert_close(pairwise_sq_dist(x, y, backend=backend), plain, rtol=1e-6, atol=0)


def test_gradients_and_second_derivatives(backend):
    x, y = (torch.randn(n, 3, dtype=torch.float64).requires_grad_() for n in (4, 5))
    if backend in ("reference", "cpu"):
        assert torch.autograd.gradcheck(lambda a, b: pairwise_sq_dist(a, b, backend=backend), (x, y))
        assert torch.autograd.gradgradcheck(lambda a, b: pairwise_sq_dist(a, b, backend=backend), (x, y))
        assert torch.autograd.gradcheck(lambda a: pairwise_sq_dist(a, backend=backend), (x,))
    x, y = x.detach().float().requires_grad_(), y.detach().half().requires_grad_()
    weight = torch.randn(4, 5)
    grads = torch.autograd.grad((weight * pairwise_sq_dist(x, y, backend=backend)).sum(), (x, y))
    plain = torch.autograd.grad((weight * (x[:, None] - y[None]).square().sum(-1)).sum(), (x, y))
    torch.testing.assert_close(grads[0], plain[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads[1], plain[1], rtol=2e-3, atol=2e-3)


def test_opcheck_and_fullgraph_compile(backend):
    x, y = torch.randn(4, 3), torch.randn(6, 3)
    torch.library.opcheck(torch.ops.kdx.pairwise_sq_dist, (x, y, backend))
    compiled = torch.compile(
        lambda a: pairwise_sq_dist(a, backend=backend).sum(), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for n in (4, 7):
        x = torch.randn(n, 3, requires_grad=True)
        plain = torch.autograd.grad(pairwise_sq_dist(x, backend=backend).sum(), x)[0]
        assert torch.equal(torch.autograd.grad(compiled(x), x)[0], plain)
    torch._dynamo.reset()


def test_bad_input_names_the_argument():
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="y: expected points with x's 3 coordinates, got 2"):
        pairwise_sq_dist(x, x[:, :2])
    with pytest.raises(ValueError, match=r"x: expected points \[N, D\], got shape \[4\]"):
        pairwise_sq_dist(x[:, 0])
    with pytest.raises(TypeError, match=r"y: expected floating point coordinates, got torch\.int64"):
        pairwise_sq_dist(x, x.long())
    with pytest.raises(ValueError, match="y: expected it on cpu"):
        pairwise_sq_dist(x, x.to("meta"))
