"""A loss that keeps nothing but its gradient, its scale, and the pass that multiplies the gradient."""

from __future__ import annotations

import pytest
import torch

from kdx.ops import kd_loss, softmax_kl

BACKENDS = ["reference", "cpu"]


def pair(dtype=torch.float32, rows=6, classes=50):
    generator = torch.Generator().manual_seed(0)
    student = 2 * torch.randn(rows, classes, generator=generator)
    teacher = student + torch.randn(rows, classes, generator=generator)
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def losses(kind, student, teacher, **call):
    if kind == "kd_loss":
        return kd_loss(student, teacher, torch.arange(len(student)), **call)
    return softmax_kl(student, teacher, temperature=2.0, divergence=kind, **call)


@pytest.fixture(params=BACKENDS)
def native(request, require):
    require("softmax_kl", request.param)
    return request.param


@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd", "kd_loss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_scale_and_upstream_are_factors_of_the_gradient_in_every_mode(native, dtype, kind, once, retain):
    student, teacher = pair(dtype)
    exact = student.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(2.5 * 0.3 * losses(kind, exact, teacher.double()), exact)
    loss = losses(kind, student, teacher, scale=0.3, once_differentiable=once, backend=native)
    torch.testing.assert_close(loss.double(), 0.3 * losses(kind, exact, teacher.double()), rtol=1e-5, atol=0)
    first = torch.autograd.grad(2.5 * loss, student, retain_graph=retain)[0]
    bound = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 2e-3}[dtype]
    assert (first - want).norm() <= bound * want.norm()
    if retain:
        kept = first.clone()
        again = torch.autograd.grad(5.0 * loss, student)[0]
        assert torch.equal(first, kept)  # the second pass has not scaled it
        assert (again - 2 * want).norm() <= bound * 2 * want.norm()


def test_nothing_but_the_gradient_is_kept(native):
    student, teacher = pair(rows=64, classes=1000)

    def kept(**call):
        found = {}

        def pack(x):
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = softmax_kl(student, teacher, mask=torch.ones(64, dtype=torch.bool), backend=native, **call)
        loss.backward()
        return sum(found.values())

    of_logits = student.numel() * 4
    assert kept(once_differentiable=True) == of_logits
    assert kept() >= 3 * of_logits


def test_a_gradient_that_nobody_asks_for_again_is_scaled_where_it_lies(native):
    if native == "reference":
        pytest.skip("the reference is a definition")
    student, teacher = pair(rows=64, classes=1000)
    found = []

    def unpack(x):
        found.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, unpack):
        loss = softmax_kl(student, teacher, backend=native, once_differentiable=True)
    (grad,) = torch.autograd.grad(3.0 * loss, student)
    assert grad.data_ptr() in found


def test_what_a_backward_pass_gave_is_the_callers(native):
    student, teacher = pair()
    loss = softmax_kl(student, teacher, once_differentiable=True, backend=native)
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    want = first.clone()
    first.zero_()
    assert torch.equal(torch.autograd.grad(loss, student)[0], want)


@pytest.mark.parametrize("divisor", [1.0, 2.0**12])
def test_a_gradient_kept_in_float16_is_rounded_behind_the_loss_scale(native, divisor):
    student, teacher = pair()
    loss = softmax_kl(student, teacher, scale=2.0**-20 / divisor, grad_dtype=torch.float16, backend=native)
    (want,) = torch.autograd.grad(softmax_kl(student, teacher, backend=native), student)
    (found,) = torch.autograd.grad(2.0**20 * divisor * loss, student)
    assert (found - want).norm() <= 2e-3 * want.norm()


@pytest.mark.parametrize("call", [{}, {"reduction": "sum"}, {"mask": torch.arange(6) % 2 == 0}, {"num_items": 3}])
def test_a_scale_may_be_a_tensor(native, call):
    student, teacher = pair()
    want = 0.3 * softmax_kl(student, teacher, backend=native, **call)
    found = softmax_kl(student, teacher, scale=torch.tensor(0.3), backend=native, **call)
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (found, want)))


def test_a_scale_that_is_a_tensor_is_one_number_without_a_gradient():
    student, teacher = pair()
    with pytest.raises(ValueError, match=r"scale: expected one number, got a tensor \[2\]"):
        softmax_kl(student, teacher, scale=torch.ones(2))
    with pytest.raises(ValueError, match="scale: gets no gradient"):
        softmax_kl(student, teacher, scale=torch.ones((), requires_grad=True))


def test_a_second_derivative_is_refused(native):
    student, teacher = pair()
    loss = softmax_kl(student, teacher, once_differentiable=True, backend=native)
    with pytest.raises(RuntimeError, match=r"leave once_differentiable out"):
        torch.autograd.grad(loss, student, create_graph=True)


def test_gradients_too_small_for_float16_are_made_behind_the_loss_scale(native):
    student, teacher = pair(torch.float16)
    exact = student.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(65536 * softmax_kl(exact, teacher.double(), scale=1e-6), exact)
    (grad,) = torch.autograd.grad(65536 * softmax_kl(student, teacher, scale=1e-6, backend=native), student)
    assert (grad - want).norm() <= 2e-3 * want.norm()


def test_nothing_that_counts_is_zero_whatever_it_is_divided_by(native):
    student, teacher = pair()
    nothing = torch.zeros(6, dtype=torch.bool)
    loss = softmax_kl(student, teacher, mask=nothing, num_items=torch.tensor(0.0), backend=native)
    loss.backward()
    assert loss.item() == 0
    assert (student.grad == 0).all()


def test_a_scale_is_a_finite_number():
    student, teacher = pair()
    with pytest.raises(ValueError, match="scale: expected a finite number"):
        softmax_kl(student, teacher, scale=float("nan"))
    with pytest.raises(ValueError, match="scale: expected a finite number"):
        kd_loss(student, teacher, torch.zeros(6, dtype=torch.int64), scale=float("inf"))
