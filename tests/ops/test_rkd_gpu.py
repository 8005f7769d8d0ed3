"""The Triton and CUDA backends of the relational losses on a real GPU, against the CPU kernel in float64."""

from __future__ import annotations

import pytest
import torch

from kdx.ops import pairwise_sq_dist, rkd
from kdx.ops._rkd import pair_grid

OP = "rkd"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
WEIGHTS = {"distance": (1.0, 0.0), "angle": (0.0, 1.0), "both": (25.0, 50.0)}


def pair(n, d_s, d_t, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype) for d in (d_s, d_t))


def close(found, want, bound):
    assert (found.detach().cpu().double() - want).norm() <= bound * want.norm()


def check(backend, student, teacher, weights, grad_bound=4e-6):
    """Loss and both gradients within the budget of every backend; `student` and `teacher` are on the CPU."""
    distance_weight, angle_weight = weights
    exact = tuple(x.detach().double().requires_grad_() for x in (student, teacher))
    want = rkd(*exact, distance_weight=distance_weight, angle_weight=angle_weight, backend="cpu")
    want_grads = torch.autograd.grad(want, exact)
    inputs = tuple(x.detach().to("cuda").requires_grad_() for x in (student, teacher))
    loss = rkd(*inputs, distance_weight=distance_weight, angle_weight=angle_weight, backend=backend)
    grads = torch.autograd.grad(loss, inputs)
    close(loss, want.detach(), 2e-6)
    for grad, want_grad in zip(grads, want_grads, strict=True):
        close(grad, want_grad, grad_bound)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("n", [3, 33, 64, 513, 1025])
def test_loss_and_both_gradients_stay_within_the_budget(on_gpu, n, weights):
    check(on_gpu, *pair(n, 65, 128), weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_are_computed_in_float32_and_rounded_once(on_gpu, dtype):
    check(on_gpu, *pair(96, 64, 64, dtype), WEIGHTS["both"], grad_bound=5e-3)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_a_pair_grid_cut_into_blocks_stays_within_the_budget(on_gpu, weights, monkeypatch):
    monkeypatch.setattr(pair_grid, "CAP", 8)
    monkeypatch.setattr(pair_grid, "BLOCK", 48)
    check(on_gpu, *pair(100, 33, 17), weights)


def test_squared_distances_are_those_of_direct_differences(on_gpu):
    x, y = pair(70, 100, 100)
    found = pairwise_sq_dist(x.to("cuda"), y[:50].to("cuda"), backend=on_gpu)
    close(found, (x.double()[:, None] - y.double()[None, :50]).square().sum(-1), 1e-6)


def test_ten_runs_give_the_same_bits(on_gpu):
    student, teacher = (x.to("cuda").requires_grad_() for x in pair(300, 64, 64))
    grads = [torch.autograd.grad(rkd(student, teacher, backend=on_gpu), student)[0] for _ in range(10)]
    assert all(torch.equal(grad, grads[0]) for grad in grads)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")  # torch says so when it is switched
def test_the_loss_and_its_backward_never_wait_for_the_gpu(on_gpu):
    student, teacher = (x.to("cuda").requires_grad_() for x in pair(96, 64, 64))
    for mode in ("default", "error"):  # the first call compiles and allocates
        torch.cuda.set_sync_debug_mode(mode)
        try:
            rkd(student, teacher, backend=on_gpu).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
