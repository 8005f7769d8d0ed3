"""Every CUDA kernel of softmax_kl in the emulation: values, any order of threads, one launch, unaligned rows."""

from __future__ import annotations

import pytest
import torch

from kdx.ops import _launch
from kdx.ops._softmax_kl import cuda, reference

# (kernel it takes, rows, classes, dtype, architecture)
CASES = [
    ("thread", 300, 10, torch.bfloat16, 90),
    ("lanes8", 37, 60, torch.bfloat16, 90),
    ("lanes32", 9, 250, torch.float16, 90),
    ("lanes32x4", 9, 1000, torch.bfloat16, 90),
    ("one block", 5, 1001, torch.float32, 90),
    ("cluster of 2", 2, 16387, torch.bfloat16, 90),
    ("cluster of 4", 2, 24001, torch.float32, 90),
    ("one block, before sm_90", 2, 24001, torch.float32, 80),
    ("long row, before sm_90", 2, 50003, torch.float16, 80),
    ("fp64", 3, 3001, torch.float64, 90),
]


def inputs(rows, classes, dtype, gap=1.0):
    generator = torch.Generator().manual_seed(rows + classes)
    student = 3 * torch.randn(rows, classes, generator=generator)
    teacher = student + gap * torch.randn(rows, classes, generator=generator)
    return student.to(dtype)[:, :, None], teacher.to(dtype)[:, :, None]


def call(module, student, teacher, divergence=0, labels=None, ce_rows=None, kl_rows=None, reduce=True, grad=True):
    ce_scale = 0.0 if labels is None else 0.3
    return module.forward(student, teacher, kl_rows, labels, ce_rows, 2.0, divergence, 0.3, 0.7, ce_scale, reduce, grad)


def assert_right(student, teacher, loss, grad, **options):
    wanted_loss, wanted_grad = call(reference, student.double(), teacher.double(), **options)
    bound = 1e-13 if student.dtype == torch.float64 else 2e-6
    rounding = (wanted_grad.to(student.dtype).double() - wanted_grad).norm()  # what any result in this dtype loses
    torch.testing.assert_close(loss.double(), wanted_loss, rtol=bound, atol=0)
    assert (grad.double() - wanted_grad).norm() <= bound * wanted_grad.norm() + 1.05 * rounding


@pytest.mark.parametrize(("rows", "classes", "dtype", "arch"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
@pytest.mark.parametrize("divergence", [0, 1, 2], ids=["forward", "reverse", "jsd"])
def test_every_kernel_gives_the_same_right_bits_in_any_order(emulated_cuda, rows, classes, dtype, arch, divergence):
    student, teacher = inputs(rows, classes, dtype)
    results = []
    for order, seed in [("forward", 0), ("reverse", 0), ("shuffled", 7)]:
        with emulated_cuda.settings(arch=arch, order=order, seed=seed):
            before = emulated_cuda.launches()
            results.append(call(cuda, student, teacher, divergence))
            assert emulated_cuda.launches() == before + 1
    assert_right(student, teacher, *results[0], divergence=divergence)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])
    rows_loss, _ = call(cuda, student, teacher, divergence, reduce=False)
    torch.testing.assert_close(rows_loss.double().sum(), results[0][0].double(), rtol=1e-6, atol=0)
    assert all((w[:4] == 0).all() for w in _launch._zeroed.values())


@pytest.mark.parametrize("classes", [200, 1000, 2000, 20000])
def test_cross_entropy_rows_without_a_label_and_rows_that_do_not_count(emulated_cuda, classes):
    student, teacher = inputs(6, classes, torch.float32)
    student[4] = torch.nan  # does not count
    teacher[1] = torch.nan  # only its label counts
    labels = torch.tensor([3, classes - 1, -100, 0, -7, 5])
    kl_rows = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0, 1.0])
    ce_rows = torch.tensor([1.0, 1.0, 0.0, 2.0, 0.0, 0.0])
    options = {"labels": labels, "ce_rows": ce_rows, "kl_rows": kl_rows}
    loss, grad = call(cuda, student, teacher, **options)
    assert (grad[4] == 0).all()
    wanted = call(
        reference,
        student.double(),
        teacher.double(),
        **options | {"ce_rows": ce_rows.double(), "kl_rows": kl_rows.double()},
    )
    torch.testing.assert_close(loss.double(), wanted[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(grad.double(), wanted[1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("classes", [12, 200, 3000])
def test_a_label_that_is_no_class_makes_its_row_nan_and_is_never_an_address(emulated_cuda, classes):
    student, teacher = inputs(3, classes, torch.float32)
    for label in (-1, classes, 2**62):
        labels, ones = torch.tensor([0, label, 1]), torch.ones(3)
        loss, grad = call(cuda, student, teacher, labels=labels, ce_rows=ones, reduce=False)
        assert loss[1].isnan().all()
        assert grad[1].isnan().all()
        assert loss[[0, 2]].isfinite().all()
        assert grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize("classes", [15, 100, 777, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_may_start_anywhere_and_be_strided(emulated_cuda, classes, dtype):
    base_s, base_t = inputs(4, 2 * classes + 9, dtype)
    views = {
        "both unaligned alike": (base_s[:, 3 : 3 + classes], base_t[:, 3 : 3 + classes]),
        "unaligned apart": (base_s[:, 1 : 1 + classes], base_t[:, 2 : 2 + classes]),
        "every second class": (base_s[:, : 2 * classes : 2], base_t[:, : 2 * classes : 2]),
        "one contiguous": (base_s[:, 5 : 5 + classes].contiguous(), base_t[:, 1 : 2 * classes : 2]),
        "one teacher for all": (base_s[:, :classes], base_t[:1, :classes].expand(4, classes, 1)),
    }
    for name, (student, teacher) in views.items():
        loss, grad = call(cuda, student, teacher)
        assert grad.shape == student.shape, name
        assert_right(student, teacher, loss, grad)


@pytest.mark.parametrize("classes", [5, 19, 150])
def test_classes_may_lie_across_an_image(emulated_cuda, classes):
    generator = torch.Generator().manual_seed(classes)
    student = 3 * torch.randn(2, classes, 91, generator=generator)
    teacher = student + torch.randn(2, classes, 91, generator=generator)
    for divergence in (0, 1, 2):
        loss, grad = call(cuda, student, teacher, divergence)
        assert grad.stride() == student.stride()
        assert_right(student, teacher, loss, grad, divergence=divergence)


@pytest.mark.parametrize("classes", [16, 40, 1000, 3000])
@pytest.mark.parametrize("divergence", [0, 1, 2], ids=["forward", "reverse", "jsd"])
def test_infinite_logits_follow_the_reference(emulated_cuda, classes, divergence):
    student, teacher = inputs(8, classes, torch.float32)
    inf = float("inf")
    teacher[0, 1] = -inf
    student[1, 2] = teacher[1, 2] = -inf
    student[2, 3] = -inf
    student[3] = -inf
    teacher[4] = -inf
    student[5, 0] = inf
    teacher[6, 4] = torch.nan
    student[7, classes // 2 :] = teacher[7, classes // 2 :] = -inf
    loss, grad = call(cuda, student, teacher, divergence, reduce=False)
    wanted_loss, wanted_grad = call(reference, student, teacher, divergence, reduce=False)
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-5, atol=1e-8, equal_nan=True)
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-4, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("count", [1, 7, 8, 4097])
def test_scaling_a_gradient_rounds_once_and_leaves_it_alone(emulated_cuda, dtype, count):
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    upstream = torch.tensor(1.2345, dtype=acc)
    for grad in (torch.randn(count).to(dtype), torch.randn(count + 3).to(dtype)[3:]):
        kept = grad.clone()
        scaled = cuda.scale_grad(grad, upstream)
        assert torch.equal(scaled, (kept.to(acc) * upstream).to(dtype))
        assert torch.equal(grad, kept)
        cuda.scale_grad_(grad, torch.ones((), dtype=acc))
        assert torch.equal(grad, kept)
        cuda.scale_grad_(grad, upstream)
        assert torch.equal(grad, scaled)


def test_the_launcher_refuses_what_the_kernel_cannot_read(emulated_cuda):
    student, teacher = inputs(4, 20, torch.float32)
    with pytest.raises(ValueError, match="kl_rows: expected 4 contiguous"):
        call(cuda, student, teacher, kl_rows=torch.ones(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="labels: expected 4 contiguous"):
        call(cuda, student, teacher, labels=torch.zeros(8, dtype=torch.int64)[::2], ce_rows=torch.ones(4))
    with pytest.raises(ValueError, match="teacher: expected"):
        call(cuda, student, teacher.bfloat16())
    with pytest.raises(ValueError, match="upstream: expected one"):
        cuda.scale_grad(student, torch.ones((), dtype=torch.float64))


def test_no_rows_launch_nothing(emulated_cuda):
    before = emulated_cuda.launches()
    loss, grad = call(cuda, *inputs(0, 20, torch.float32))
    assert loss.item() == 0
    assert grad.shape == (0, 20, 1)
    assert emulated_cuda.launches() == before
