"""The Triton and CUDA backends of softmax_kl on a real GPU, against float64 on the same device."""

from __future__ import annotations

import pytest
import torch

from kdx.ops import kd_loss, softmax_kl

OP = "softmax_kl"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
DIVERGENCES = ["forward", "reverse", "jsd"]


def pair(*shape, std=3.0, gap=1.0, dtype=torch.float32):
    generator = torch.Generator("cuda").manual_seed(0)
    student = std * torch.randn(*shape, generator=generator, device="cuda", dtype=torch.float64)
    teacher = student + gap * torch.randn(*shape, generator=generator, device="cuda", dtype=torch.float64)
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def against_truth(student, teacher, backend, **call):
    """Relative errors of loss and gradient."""
    loss = softmax_kl(student, teacher, backend=backend, **call)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    s = student.detach().double().requires_grad_()
    want = softmax_kl(s, teacher.double(), backend="reference", **call)
    (want_grad,) = torch.autograd.grad(want.sum(), s)
    return (
        ((loss.double() - want).norm() / want.norm()).item(),
        ((grad.double() - want_grad).norm() / want_grad.norm()).item(),
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("gap", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("std", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_float32_stays_within_the_budget(on_gpu, divergence, std, gap, temperature):
    student, teacher = pair(64, 1000, std=std, gap=gap)
    loss, grad = against_truth(student, teacher, on_gpu, divergence=divergence, temperature=temperature)
    assert loss <= 1e-5
    assert grad <= (2e-5 if std == 30 else 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("C", [1, 2, 10, 19, 100, 1000, 1001, 8191, 32000, 50257, 128256, 262144])
def test_every_number_of_classes(on_gpu, C, dtype):
    for reduction in ("batchmean", "none"):
        student, teacher = pair(3, C, dtype=dtype)
        if C == 1:
            assert softmax_kl(student, teacher, backend=on_gpu).item() == 0
            continue
        loss, grad = against_truth(student, teacher, on_gpu, temperature=2.0, reduction=reduction)
        assert loss <= 1e-5
        assert grad <= {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}[dtype]


def test_layouts_rows_and_streams(on_gpu):
    student, teacher = pair(5, 7, 1001)
    for s, t, dim in (
        (student[:, :-1], teacher[:, 1:], -1),
        (student[..., 1:], teacher[..., :-1], -1),
        (student, teacher, 1),
        (student, teacher[:1].expand_as(teacher), 0),
    ):
        leaf = s.detach().requires_grad_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss, grad = against_truth(leaf, t, on_gpu, dim=dim, temperature=2.0)
        assert loss <= 1e-5
        assert grad <= 1e-5


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")  # torch says so when it is switched
def test_the_loss_and_its_backward_never_wait_for_the_gpu(on_gpu):
    student, teacher = pair(256, 1000)
    labels = torch.arange(256, device="cuda")
    for _ in range(2):  # the first call compiles and allocates
        torch.cuda.set_sync_debug_mode("error" if _ else "default")
        try:
            (softmax_kl(student, teacher, backend=on_gpu) * 0.5).backward()
            (kd_loss(student, teacher, labels, backend=on_gpu) * 0.5).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_ten_runs_give_the_same_bits(on_gpu):
    student, teacher = pair(300, 32000)
    losses = torch.stack([softmax_kl(student, teacher, backend=on_gpu).detach() for _ in range(10)])
    assert (losses == losses[0]).all()


def test_a_cuda_graph_replays_it(on_gpu):
    student, teacher = pair(256, 1000)

    def step():
        return torch.autograd.grad(softmax_kl(student, teacher, backend=on_gpu), student)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        want = step()
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grad = step()
    for _ in range(2):
        grad.fill_(float("nan"))
        graph.replay()
        assert torch.equal(grad, want)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_into_one_graph(on_gpu):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda s, t: softmax_kl(2 * s, t, temperature=2.0, backend=on_gpu), fullgraph=True, dynamic=True
    )
    for rows in (4, 9):
        student, teacher = pair(rows, 1000)
        want = softmax_kl(2 * student, teacher, temperature=2.0, backend=on_gpu)
        assert torch.allclose(compiled(student, teacher), want, rtol=1e-6)
