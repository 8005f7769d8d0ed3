"""The Triton kernels of softmax_kl in the interpreter: every shape of the table, split rows, awkward rows."""

from __future__ import annotations

import pytest
import torch

from kdx.ops import _launch
from kdx.ops._softmax_kl import reference

pytest.importorskip("triton")

# name: (rows, classes, table, tile, split from); the longer shapes with small tiles, for the interpreter's sake
SHAPES = {
    "resident, many rows": (70, 10, None, None, None),
    "resident, one row": (3, 1000, None, None, None),
    "two passes": (3, 300, (), 64, 1000),
    "split in 2": (2, 300, (), 64, 100),
    "split in 5, the last ones empty": (2, 321, (), 64, 60),
}


@pytest.fixture
def triton_backend(require):
    require("softmax_kl", "triton")
    from kdx.ops._softmax_kl import triton

    return triton


@pytest.fixture
def use(triton_backend, monkeypatch):
    def apply(name):
        rows, classes, table, tile, split_from = SHAPES[name]
        if table is not None:
            monkeypatch.setattr(triton_backend, "RESIDENT", table)
            monkeypatch.setattr(triton_backend, "_TILE", tile)
            monkeypatch.setattr(triton_backend, "_SPLIT_FROM", split_from)
        return rows, classes

    return apply


def inputs(rows, classes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(classes)
    student = 3 * torch.randn(rows, classes, generator=generator)
    teacher = student + torch.randn(rows, classes, generator=generator)
    return student.to(dtype)[:, :, None], teacher.to(dtype)[:, :, None]


def call(module, student, teacher, divergence=0, labels=None, ce_rows=None, kl_rows=None, reduce=True, grad=True):
    ce_scale = 0.0 if labels is None else 0.3
    return module.forward(student, teacher, kl_rows, labels, ce_rows, 2.0, divergence, 0.7, 0.7, ce_scale, reduce, grad)


def assert_right(student, teacher, loss, grad, **options):
    wanted_loss, wanted_grad = call(reference, student.double(), teacher.double(), **options)
    rounding = (wanted_grad.to(student.dtype).double() - wanted_grad).norm()
    torch.testing.assert_close(loss.double(), wanted_loss, rtol=2e-6, atol=0)
    assert (grad.double() - wanted_grad).norm() <= 2e-6 * wanted_grad.norm() + 1.05 * rounding


@pytest.mark.quick(divergence=[0])
@pytest.mark.parametrize("divergence", [0, 1, 2], ids=["forward", "reverse", "jsd"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_gives_loss_rows_and_gradient(triton_backend, use, name, divergence):
    student, teacher = inputs(*use(name))
    loss, grad = call(triton_backend, student, teacher, divergence)
    assert_right(student, teacher, loss, grad, divergence=divergence)
    row_losses, _ = call(triton_backend, student, teacher, divergence, reduce=False, grad=False)
    wanted, _ = call(reference, student.double(), teacher.double(), divergence, reduce=False, grad=False)
    torch.testing.assert_close(row_losses.double(), wanted, rtol=2e-6, atol=0)
    assert all((w[:4] == 0).all() for w in _launch._zeroed.values())


@pytest.mark.quick(name=["resident, one row", "two passes"])
@pytest.mark.parametrize("name", ["resident, one row", "two passes", "split in 2"])
def test_labels_and_rows_that_do_not_count(triton_backend, use, name):
    _, classes = use(name)
    student, teacher = inputs(7, classes)
    student[4] = torch.nan  # does not count
    teacher[1] = torch.nan  # only its label counts
    labels = torch.tensor([3, classes - 1, -100, 0, -7, 5, classes])
    kl_rows = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0, 1.0, 1.0])
    ce_rows = torch.tensor([1.0, 1.0, 0.0, 2.0, 0.0, 0.0, 1.0])  # the last label is no class: its row is NaN
    options = {"labels": labels, "ce_rows": ce_rows, "kl_rows": kl_rows, "reduce": False}
    loss, grad = call(triton_backend, student, teacher, **options)
    options |= {"ce_rows": ce_rows.double(), "kl_rows": kl_rows.double()}
    wanted_loss, wanted_grad = call(reference, student.double(), teacher.double(), **options)
    torch.testing.assert_close(loss.double(), wanted_loss, rtol=2e-6, atol=0, equal_nan=True)
    torch.testing.assert_close(grad.double(), wanted_grad, rtol=1e-5, atol=1e-8, equal_nan=True)
    assert loss[6].isnan().all()


@pytest.mark.quick(divergence=[0])
@pytest.mark.parametrize("divergence", [0, 1, 2], ids=["forward", "reverse", "jsd"])
@pytest.mark.parametrize("name", ["resident, one row", "two passes", "split in 2"])
def test_infinite_logits_follow_the_reference(triton_backend, use, name, divergence):
    _, classes = use(name)
    student, teacher = inputs(8, classes)
    inf = float("inf")
    teacher[0, 1] = -inf
    student[1, 2] = teacher[1, 2] = -inf
    student[2, 3] = -inf
    student[3] = -inf
    teacher[4] = -inf
    student[5, 0] = inf
    teacher[6, 4] = torch.nan
    student[7, classes // 2 :] = teacher[7, classes // 2 :] = -inf
    loss, grad = call(triton_backend, student, teacher, divergence, reduce=False)
    wanted_loss, wanted_grad = call(reference, student, teacher, divergence, reduce=False)
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-5, atol=1e-8, equal_nan=True)
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-4, atol=1e-8, equal_nan=True)


@pytest.mark.quick(name=["resident, one row"])
@pytest.mark.parametrize("name", ["resident, one row", "two passes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_may_start_anywhere_be_strided_or_lie_across_an_image(triton_backend, use, name, dtype):
    use(name)
    base_s, base_t = inputs(4, 409, dtype)
    image_s, image_t = (x.reshape(2, 2, 409)[:, :, :400].transpose(1, 2).reshape(2, 20, 40) for x in (base_s, base_t))
    for student, teacher in [
        (base_s[:, 3:203], base_t[:, 3:203]),
        (base_s[:, 1:201], base_t[:, 2:202]),
        (base_s[:, :400:2], base_t[:, :400:2]),
        (base_s[:, :200], base_t[:1, :200].expand(4, 200, 1)),
        (base_s[:, :200].transpose(0, 2), base_t[:, :200].transpose(0, 2)),
        (image_s, image_t),
    ]:
        loss, grad = call(triton_backend, student, teacher)
        assert_right(student, teacher, loss, grad)


@pytest.mark.slow
def test_the_precision_budget_holds(triton_backend):
    generator = torch.Generator().manual_seed(0)
    for std, gaps in ((0.1, (1e-4,)), (3.0, (1.0, 1e-2, 1e-4)), (30.0, (1.0, 1e-4)), (300.0, (1.0,))):
        for gap in gaps:
            student = std * torch.randn(8, 1000, 1, generator=generator)
            teacher = student + gap * torch.randn(8, 1000, 1, generator=generator)
            for divergence in (0, 1, 2):
                options = (None, None, None, 4.0, divergence, 0.3, 1.0, 0.0, False, True)
                loss, grad = triton_backend.forward(student, teacher, *options)
                wanted, wanted_grad = reference.forward(student.double(), teacher.double(), *options)
                assert (loss >= 0).all()
                torch.testing.assert_close(loss.double().sum(), wanted.sum(), rtol=1e-5, atol=0)
                assert (grad - wanted_grad).norm() <= (2e-6 if std <= 3 else 2e-5) * wanted_grad.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scaling_a_gradient_rounds_once_and_leaves_it_alone(triton_backend, dtype):
    grad, upstream = torch.randn(5000).to(dtype), torch.tensor(1.2345)
    kept = grad.clone()
    assert torch.equal(triton_backend.scale_grad(grad, upstream), (kept.float() * upstream).to(dtype))
    assert torch.equal(grad, kept)
    for factor in (torch.tensor(1.0), upstream):
        triton_backend.scale_grad_(grad, factor)
        assert torch.equal(grad, (kept.float() * factor).to(dtype))


def test_no_rows_and_float64(triton_backend):
    loss, grad = call(triton_backend, *inputs(0, 20))
    assert loss.item() == 0
    assert grad.shape == (0, 20, 1)
    x = torch.zeros(1, 2, 1, dtype=torch.float64)
    assert "float64" in triton_backend.unsupported(x, x)
