"""softmax_kl inside torch: autograd, opcheck, torch.compile, autocast, vmap and torch.func."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from kdx.ops import kd_loss, softmax_kl
from kdx.ops._softmax_kl import autograd

DIVERGENCES = ["forward", "reverse", "jsd"]
NATIVE = ["reference", "cpu"]


# torch.compile itself makes an instance of every autograd function that it traces, which torch then warns of.
compiles = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture(params=NATIVE)
def native(request, require):
    require("softmax_kl", request.param)
    return request.param


def pair(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    student = 2 * torch.randn(*shape, generator=generator, dtype=dtype)
    return student, student + torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_first_and_second_derivatives_are_those_of_the_loss(native, divergence, reduction):
    student, teacher = (x.requires_grad_() for x in pair(4, 5, dtype=torch.float64))
    mask = torch.tensor([True, True, False, True])

    def loss(s, t):
        call = {"temperature": 3.0, "divergence": divergence, "beta": 0.3, "mask": mask, "reduction": reduction}
        return softmax_kl(s, t, **call, backend=native)

    assert gradcheck(loss, (student, teacher))
    assert gradgradcheck(loss, (student, teacher))


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
def test_first_and_second_derivatives_of_kd_loss(native, reduction):
    student, teacher = (x.requires_grad_() for x in pair(4, 5, dtype=torch.float64))
    labels = torch.tensor([0, -100, 3, 4])

    def loss(s, t):
        return kd_loss(s, t, labels, temperature=3.0, alpha=0.3, reduction=reduction, backend=native)

    assert gradcheck(loss, (student, teacher))
    assert gradgradcheck(loss, (student, teacher))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_second_derivatives_where_student_and_teacher_are_equal(native, divergence):
    student, _ = pair(3, 5, dtype=torch.float64)
    teacher = student.clone()

    def loss(s):
        return softmax_kl(s, teacher, divergence=divergence, backend=native)

    assert gradgradcheck(loss, (student.clone().requires_grad_(),))


def test_backward_twice_gives_the_same_and_leaves_what_was_saved(backend):
    student, teacher = pair(6, 20)
    student.requires_grad_()
    for reduction in ("batchmean", "none"):
        loss = softmax_kl(student, teacher, reduction=reduction, backend=backend).sum()
        for scale in (1.0, 0.25):
            first = torch.autograd.grad(loss * scale, student, retain_graph=True)[0]
            second = torch.autograd.grad(loss * scale, student, retain_graph=True)[0]
            assert torch.equal(first, second)
        again = torch.autograd.grad(loss, student, retain_graph=True)[0]
        assert torch.allclose(again, first * 4, rtol=1e-6)


def test_the_gradient_accumulates_into_grad(backend):
    student, teacher = pair(6, 20)
    student.requires_grad_()
    loss = softmax_kl(student, teacher, backend=backend)
    loss.backward(retain_graph=True)
    once = student.grad.clone()
    loss.backward()
    assert torch.equal(student.grad, 2 * once)


def test_no_gradient_is_made_when_none_is_needed(native, monkeypatch):
    asked = []
    call = autograd._call

    def spy(student, teacher, rows, options, grad):
        asked.append(grad)
        return call(student, teacher, rows, options, grad)

    monkeypatch.setattr(autograd, "_call", spy)
    student, teacher = pair(4, 5)
    assert not softmax_kl(student, teacher, backend=native).requires_grad
    with torch.no_grad():
        softmax_kl(student.requires_grad_(), teacher, backend=native)
    assert asked == [False, False]
    softmax_kl(student, teacher, backend=native)
    assert asked[2:] == [True]
    softmax_kl(student, teacher, reduction="none", backend=native)
    assert asked[3:] == [False]  # made in the backward pass
    softmax_kl(student.detach(), teacher.requires_grad_(), backend=native)
    assert asked[4:] == [False, True]  # the loss, then the teacher's gradient


def test_opcheck(native):
    student, teacher = pair(6, 5, 1)
    kl, ce, labels = torch.rand(6), torch.rand(6), torch.arange(6) % 5
    op = torch.ops.kdx.softmax_kl.default
    for reduce, grad in itertools.product((True, False), repeat=2):
        torch.library.opcheck(op, (student, teacher, None, None, None, 2.0, 0, 0.5, 1.0, 0.0, 1, reduce, native, grad))
        torch.library.opcheck(op, (student, teacher, kl, labels, ce, 2.0, 2, 0.5, 1.0, 1.0, 0, reduce, native, grad))
    torch.library.opcheck(torch.ops.kdx.scale_grad.default, (torch.randn(4, 5), torch.tensor(2.0), native))


@compiles
@pytest.mark.quick(reduction=["batchmean"])
@pytest.mark.parametrize("reduction", ["none", "mean", "batchmean"])
def test_compiles_into_one_graph_for_every_batch_size(native, reduction):
    def loss(s, t, mask, labels):
        call = {"reduction": reduction, "backend": native}
        total = softmax_kl(2 * s, t, temperature=2.0, mask=mask, **call).sum()
        total = total + softmax_kl(s, t, divergence="jsd", **call).sum()
        return total + kd_loss(s, t, labels, **call).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (6, 9, 31):
        student, teacher = (x.requires_grad_() for x in pair(rows, 5))
        rest = torch.arange(rows) % 2 == 0, torch.arange(rows) % 5
        grads = [torch.autograd.grad(f(student, teacher, *rest), (student, teacher)) for f in (compiled, loss)]
        assert torch.allclose(compiled(student, teacher, *rest), loss(student, teacher, *rest), rtol=1e-6)
        for a, b in zip(*grads, strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-8)


@compiles
@pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:DeprecationWarning")  # torch's inductor uses its own past
@pytest.mark.slow
def test_inductor_compiles_it(native):
    def loss(s, t):
        return softmax_kl(s * 1.5, t, temperature=4.0, backend=native)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    for rows in (4, 7):
        student, teacher = pair(rows, 10)
        student.requires_grad_()
        assert torch.allclose(compiled(student, teacher), loss(student, teacher), rtol=1e-6)
        (a,), (b,) = (torch.autograd.grad(f(student, teacher), student) for f in (compiled, loss))
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(native, dtype):
    student, teacher = (x.to(dtype) for x in pair(6, 50))
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = softmax_kl(student, teacher, temperature=2.0, backend=native)
    outside = softmax_kl(student, teacher, temperature=2.0, backend=native)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert torch.equal(*(torch.autograd.grad(x, student)[0] for x in (inside, outside)))


@pytest.mark.parametrize("reduction", ["none", "mean", "batchmean"])
def test_vmap_over_a_leading_dimension_is_a_loop_over_it(native, reduction):
    student, teacher = pair(3, 6, 5)
    student.requires_grad_()
    labels = torch.arange(18).reshape(3, 6) % 5
    mask = torch.arange(18).reshape(3, 6) % 4 != 0

    def losses(s, t, y, m):
        kl = softmax_kl(s, t, temperature=2.0, mask=m, reduction=reduction, backend=native)
        return kl + kd_loss(s, t, y, reduction=reduction, backend=native)

    batched = torch.func.vmap(losses)(student, teacher, labels, mask)
    looped = torch.stack([losses(*x) for x in zip(student, teacher, labels, mask, strict=True)])
    assert torch.allclose(batched, looped, rtol=1e-5)
    a, b = (torch.autograd.grad(x.sum(), student)[0] for x in (batched, looped))
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)


def test_vmap_takes_an_argument_that_is_not_batched(native):
    student, teacher = pair(3, 6, 5)
    batched = torch.func.vmap(lambda s: softmax_kl(s, teacher[0], backend=native))(student)
    looped = torch.stack([softmax_kl(s, teacher[0], backend=native) for s in student])
    assert torch.allclose(batched, looped, rtol=1e-6)


def test_per_sample_gradients(native):
    student, teacher = pair(4, 6, 5)

    def loss(s, t):
        return softmax_kl(s, t, temperature=2.0, backend=native)

    grads = torch.func.vmap(torch.func.grad(loss))(student, teacher)
    for grad, s, t in zip(grads, student, teacher, strict=True):
        leaf = s.clone().requires_grad_()
        assert torch.allclose(grad, torch.autograd.grad(loss(leaf, t), leaf)[0], rtol=1e-5, atol=1e-8)
    outer = torch.func.grad(lambda s: torch.func.vmap(loss)(s, teacher).sum())(student)
    assert torch.allclose(outer, grads, rtol=1e-5, atol=1e-8)
