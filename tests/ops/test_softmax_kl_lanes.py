"""softmax_kl on a CPU where a lane of a vector is a row: few classes, and classes that are not neighbours."""

from __future__ import annotations

import pytest
import torch

from kdx.ops import kd_loss, softmax_kl

DIVERGENCES = ["forward", "reverse", "jsd"]


@pytest.fixture(autouse=True)
def native(require):
    require("softmax_kl", "cpu")


def pair(*shape, dtype=torch.float32, std=3.0, gap=1.0):
    generator = torch.Generator().manual_seed(0)
    student = std * torch.randn(*shape, generator=generator)
    return student.to(dtype), (student + gap * torch.randn(*shape, generator=generator)).to(dtype)


def both(loss, student):
    student = student.clone().requires_grad_()
    value = loss(student)
    (grad,) = torch.autograd.grad(value.sum(), student)
    return value.detach(), grad


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("shape", "dim"), [((131, 3), 1), ((70, 64), 1), ((3, 19, 5, 7), 1), ((2, 150, 4, 16), 1), ((2, 10, 3), 1)]
)
def test_equals_float64(shape, dim, dtype, divergence):
    student, teacher = pair(*shape, dtype=dtype)
    call = {"temperature": 2.0, "divergence": divergence, "beta": 0.3, "dim": dim, "reduction": "none"}
    loss, grad = both(lambda s: softmax_kl(s, teacher, **call, backend="cpu"), student)
    want, want_grad = both(lambda s: softmax_kl(s, teacher.double(), **call, backend="reference"), student.double())
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-9)
    bound = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}[dtype]
    assert (grad - want_grad).norm() <= bound * want_grad.norm()


@pytest.mark.parametrize("gap", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("std", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_accuracy_budget_holds_for_few_classes(temperature, std, gap):
    student, teacher = pair(640, 10, std=std, gap=gap)
    loss, grad = both(lambda s: softmax_kl(s, teacher, temperature=temperature, backend="cpu"), student)
    want, want_grad = both(lambda s: softmax_kl(s, teacher.double(), temperature=temperature), student.double())
    assert abs(loss - want) <= 1e-5 * want
    assert (grad - want_grad).norm() <= (2e-6 if std <= 3 else 2e-5) * want_grad.norm()


@pytest.mark.parametrize("classes", [2, 10, 64])
def test_a_row_has_the_same_bits_in_every_batch(classes):
    student, teacher = pair(200, classes)
    call = {"reduction": "none", "backend": "cpu"}
    loss, grad = both(lambda s: softmax_kl(s, teacher, **call), student)
    for rows in (slice(0, 1), slice(3, 20), slice(63, 66), slice(100, 200), slice(0, 200, 3)):
        part, part_grad = both(lambda s, rows=rows: softmax_kl(s, teacher[rows], **call), student[rows])
        assert torch.equal(part, loss[rows])
        assert torch.equal(part_grad, grad[rows])


def test_pixels_have_the_bits_of_rows():
    student, teacher = pair(2, 12, 9, 11)
    call = {"reduction": "none", "backend": "cpu"}
    loss, grad = both(lambda s: softmax_kl(s, teacher, dim=1, **call), student)
    rows, row_grad = both(
        lambda s: softmax_kl(s, teacher.movedim(1, -1).contiguous(), **call), student.movedim(1, -1).contiguous()
    )
    assert torch.equal(loss, rows)
    assert torch.equal(grad.movedim(1, -1), row_grad)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", ["rows", "pixels"])
def test_a_broken_row_breaks_no_other_and_a_masked_one_is_not_looked_at(layout, value):
    student, teacher = pair(100, 7)
    broken, dim = student.clone(), 1
    broken[[5, 50]] = value
    mask = torch.ones(100, dtype=torch.bool)
    mask[50] = False
    if layout == "pixels":
        student, broken, teacher = (x.view(2, 50, 7).movedim(-1, 1).contiguous() for x in (student, broken, teacher))
        mask = mask.view(2, 50)
    call = {"mask": mask, "reduction": "none", "dim": dim, "backend": "cpu"}
    loss, grad = both(lambda s: softmax_kl(s, teacher, **call), broken)
    want, want_grad = both(lambda s: softmax_kl(s, teacher, **call), student)
    loss, want = loss.reshape(-1), want.reshape(-1)
    flat = (lambda x: x.movedim(1, -1).reshape(100, 7)) if layout == "pixels" else (lambda x: x)
    grad, want_grad = flat(grad), flat(want_grad)
    assert loss[5].isnan()
    assert loss[50] == 0
    assert (grad[50] == 0).all()
    others = torch.ones(100, dtype=torch.bool)
    others[[5, 50]] = False
    assert torch.equal(loss[others], want[others])
    assert torch.equal(grad[others], want_grad[others])


@pytest.mark.parametrize("offset", [1e6, 1e10])
def test_rows_that_lie_far_apart_are_measured_from_their_maxima(offset):
    student, teacher = pair(70, 10)
    shifted = student + offset
    loss, grad = both(lambda s: softmax_kl(s, teacher, reduction="none", backend="cpu"), shifted)
    want, want_grad = both(lambda s: softmax_kl(s, teacher.double(), reduction="none"), shifted.double())
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(grad.double(), want_grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("layout", ["rows", "pixels"])
def test_kd_loss_with_ignored_labels_and_masks(layout):
    shape, dim = ((90, 10), 1) if layout == "rows" else ((2, 10, 45), 1)
    student, teacher = pair(*shape)
    labels = torch.arange(90) % 10
    labels[::4] = -100
    mask = torch.arange(90) % 3 != 0
    if layout == "pixels":
        labels, mask = labels.view(2, 45), mask.view(2, 45)
    call = {"temperature": 2.0, "alpha": 0.4, "mask": mask, "dim": dim}
    loss, grad = both(lambda s: kd_loss(s, teacher, labels, **call, backend="cpu"), student)
    want, want_grad = both(
        lambda s: kd_loss(s, teacher.double(), labels, **call, backend="reference"), student.double()
    )
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0)
    assert (grad - want_grad).norm() <= 1e-6 * want_grad.norm()


@pytest.mark.parametrize("layout", ["rows", "pixels"])
def test_the_two_terms_of_a_pass_are_those_of_two_calls(layout):
    shape, dim = ((90, 10), 1) if layout == "rows" else ((2, 10, 45), 1)
    student, teacher = pair(*shape)
    labels = (torch.arange(90) % 10).view(shape[0], -1) if layout == "pixels" else torch.arange(90) % 10
    call = {"temperature": 2.0, "dim": dim, "backend": "cpu"}
    kl, ce = kd_loss(student, teacher, labels, return_terms=True, weights=(0.3, 0.7), **call)
    torch.testing.assert_close(kl, 0.3 * softmax_kl(student, teacher, **call), rtol=1e-5, atol=0)
    torch.testing.assert_close(ce, 0.7 * torch.nn.functional.cross_entropy(student, labels), rtol=1e-5, atol=0)
