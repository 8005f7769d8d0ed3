"""Awkward inputs: infinities, NaN, nothing at all, odd sizes and strides, poisoned outputs, threads, repetition."""

from __future__ import annotations

import math

import pytest
import torch

from kdx.ops import kd_loss, softmax_kl

INF, NAN = math.inf, math.nan
DIVERGENCES = ["forward", "reverse", "jsd"]
CLASSES = [1, 2, 10, 19, 100, 1000, 1001, 8191, 32000, 50257, 128256]


def pair(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    student = 3 * torch.randn(*shape, generator=generator)
    return student.to(dtype), (student + torch.randn(*shape, generator=generator)).to(dtype)


def run(student, teacher, backend, **call):
    student = student.detach().requires_grad_()
    loss = softmax_kl(student, teacher, backend=backend, **call)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    return loss.detach(), grad


def poison(monkeypatch):
    """Fill what `torch.empty*` hands out with NaN, so that an entry nobody writes shows."""
    for name in ("empty", "empty_like", "empty_strided"):
        make = getattr(torch, name)

        def poisoned(*args, _make=make, **kwargs):
            out = _make(*args, **kwargs)
            return out.fill_(NAN) if out.dtype.is_floating_point else out

        monkeypatch.setattr(torch, name, poisoned)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("C", CLASSES)
def test_every_number_of_classes(backend, C, divergence, monkeypatch):
    if backend in ("triton", "cuda") and C > 32000 and divergence != "forward":
        pytest.skip("the interpreter and the emulation are slow; the longest rows are run with the forward KL")
    student, teacher = pair(2, C)
    want, want_grad = run(student.double(), teacher.double(), "reference", temperature=2.0, divergence=divergence)
    poison(monkeypatch)
    loss, grad = run(student, teacher, backend, temperature=2.0, divergence=divergence)
    assert abs(loss.item() - want.item()) <= 1e-6 * want.item()
    # With two classes a gradient may be far smaller than the probabilities, which carry the rounding of numbers near 1.
    assert (grad - want_grad).norm() <= max(2e-6 * want_grad.norm(), 2.0**-24 * 2**0.5)


@pytest.mark.parametrize("N", [0, 1, 2, 131])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
def test_every_number_of_rows(backend, N, reduction, monkeypatch):
    student, teacher = pair(N, 19)
    labels = torch.arange(N) % 19
    want, want_grad = run(student.double(), teacher.double(), "reference", reduction=reduction)
    poison(monkeypatch)
    loss, grad = run(student, teacher, backend, reduction=reduction)
    assert torch.allclose(loss.double(), want, rtol=1e-5, atol=0)
    assert grad.shape == student.shape
    assert (grad - want_grad).norm() <= 2e-6 * want_grad.norm()
    both = kd_loss(student.requires_grad_(), teacher, labels, reduction=reduction, backend=backend)
    assert both.shape == loss.shape
    assert both.isfinite().all()
    if N == 0 and reduction != "none":
        assert both.item() == loss.item() == 0


def views():
    """Name and a function that lays the same values out in memory in another way."""

    def sliced(x):
        wide = torch.full((x.shape[0], 2 * x.shape[1] + 3), NAN, dtype=x.dtype)
        wide[:, 1 : x.shape[1] + 1] = x
        return wide[:, 1 : x.shape[1] + 1]

    def unaligned(x):
        flat = torch.full((x.numel() + 1,), NAN, dtype=x.dtype)
        flat[1:] = x.reshape(-1)
        return flat[1:].view(x.shape)

    def every_other(x):
        wide = torch.full((x.shape[0], 2 * x.shape[1]), NAN, dtype=x.dtype)
        wide[:, ::2] = x
        return wide[:, ::2]

    return {
        "contiguous": lambda x: x,
        "sliced": sliced,
        "unaligned": unaligned,
        "every_other": every_other,
        "transposed": lambda x: x.t().contiguous().t(),
    }


@pytest.mark.parametrize("teacher_view", ["contiguous", "sliced", "transposed"])
@pytest.mark.parametrize("student_view", list(views()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layout_in_memory_changes_nothing(backend, dtype, student_view, teacher_view, monkeypatch):
    student, teacher = pair(5, 257, dtype=dtype)
    want, want_grad = run(student, teacher, backend, temperature=2.0)
    student, teacher = views()[student_view](student), views()[teacher_view](teacher)
    poison(monkeypatch)
    loss, grad = run(student, teacher, backend, temperature=2.0)
    assert torch.allclose(loss, want, rtol=1e-6, atol=0)
    assert (grad.double() - want_grad.double()).norm() <= (2e-6 if dtype == torch.float32 else 1e-3) * want_grad.norm()


def test_tokens_shifted_by_one_are_read_in_place(backend):
    student, teacher = pair(3, 8, 50)
    call = {"temperature": 2.0, "reduction": "none"}
    loss, grad = run(student[:, :-1], teacher[:, 1:], backend, **call)
    want, want_grad = run(student[:, :-1].contiguous(), teacher[:, 1:].contiguous(), backend, **call)
    # Not bit for bit: a kernel that cuts rows at 16-byte addresses adds up a shifted row in other groups.
    assert torch.allclose(loss, want, rtol=1e-6, atol=0)
    assert (grad - want_grad).norm() <= 2e-6 * want_grad.norm()


def test_an_expanded_teacher_is_read_with_stride_zero(backend):
    student, teacher = pair(6, 40)
    loss, grad = run(student, teacher[:1].expand(6, 40), backend)
    want, want_grad = run(student, teacher[:1].repeat(6, 1), backend)
    assert torch.allclose(loss, want, rtol=1e-6)
    assert torch.allclose(grad, want_grad, rtol=1e-6)


def test_a_class_that_neither_side_has_counts_for_nothing(backend):
    """-inf in both: the same as leaving the class out."""
    student, teacher = pair(4, 30)
    wide_s, wide_t = (torch.cat([x, torch.full((4, 5), -INF)], 1) for x in (student, teacher))
    for divergence in DIVERGENCES:
        loss, grad = run(wide_s, wide_t, backend, divergence=divergence)
        want, want_grad = run(student, teacher, backend, divergence=divergence)
        assert torch.allclose(loss, want, rtol=1e-6)
        assert torch.allclose(grad[:, :30], want_grad, rtol=1e-5, atol=1e-9)
        assert not grad[:, 30:].count_nonzero()


def test_a_class_only_the_student_has(backend):
    """Teacher -inf: p = 0, its term is 0 in the forward KL, finite in JSD, infinite in the reverse KL."""
    student, teacher = pair(4, 30)
    teacher[:, 0] = teacher[1, 5] = -INF
    q, p = student.double().softmax(-1), teacher.double().softmax(-1)
    log_ratio = torch.where(p == 0, 0.0, p.log() - q.log())
    loss, grad = run(student, teacher, backend, reduction="none")
    assert torch.allclose(loss.double(), (p * log_ratio).sum(-1), rtol=1e-5)
    assert torch.allclose(grad.double(), q - p, atol=1e-6)
    m = (p + q) / 2
    want = (torch.where(p == 0, 0.0, p * (p / m).log()) + q * (q / m).log()).sum(-1) / 2
    jsd, jsd_grad = run(student, teacher, backend, divergence="jsd", reduction="none")
    assert torch.allclose(jsd.double(), want, rtol=1e-5)
    assert jsd_grad.isfinite().all()
    assert run(student, teacher, backend, divergence="reverse", reduction="none")[0].isposinf().all()


def test_a_class_only_the_teacher_has(backend):
    """Student -inf: q = 0; forward KL is inf with the finite gradient q - p, reverse KL and JSD are finite."""
    student, teacher = pair(4, 30)
    student[:2, 0] = -INF
    q, p = student.double().softmax(-1), teacher.double().softmax(-1)
    loss, grad = run(student, teacher, backend, reduction="none")
    assert loss[:2].isposinf().all()
    assert loss[2:].isfinite().all()
    assert torch.allclose(grad.double(), q - p, atol=1e-6)
    reverse, reverse_grad = run(student, teacher, backend, divergence="reverse", reduction="none")
    want = torch.where(q == 0, 0.0, q * (q.log() - p.log())).sum(-1)
    assert torch.allclose(reverse.double(), want, rtol=1e-5)
    assert not reverse_grad[:2, 0].count_nonzero()
    jsd, jsd_grad = run(student, teacher, backend, divergence="jsd", reduction="none")
    assert jsd.isfinite().all()
    assert jsd_grad.isfinite().all()
    assert not jsd_grad[:2, 0].count_nonzero()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("bad", [NAN, INF, "nothing"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_bad_row_gives_nan_in_that_row_only(backend, side, bad, divergence):
    student, teacher = pair(4, 30)
    student[1, 3] = -200  # a class whose probability is 0 is NaN with the others
    x = student if side == "student" else teacher
    if bad == "nothing":
        x[1] = -INF
    else:
        x[1, 7] = bad
    loss, grad = run(student, teacher, backend, divergence=divergence, reduction="none")
    rest = torch.tensor([0, 2, 3])
    assert loss[1].isnan()
    assert grad[1].isnan().all()
    assert loss[rest].isfinite().all()
    assert grad[rest].isfinite().all()
    assert run(student, teacher, backend, divergence=divergence)[0].isnan()


def test_rows_that_are_masked_out_are_not_looked_at(backend, monkeypatch):
    student, teacher = pair(6, 30)
    mask = torch.tensor([True, False, True, False, True, True])
    labels = torch.arange(6)
    want, want_grad = run(student[mask], teacher[mask], backend)
    want_both = kd_loss(student[mask], teacher[mask], labels[mask], backend=backend)
    student[~mask], teacher[1], labels[3] = NAN, INF, 1 << 40
    poison(monkeypatch)
    loss, grad = run(student, teacher, backend, mask=mask)
    assert torch.allclose(loss, want, rtol=1e-6)
    assert torch.allclose(grad[mask], want_grad, rtol=1e-6)
    assert not grad[~mask].count_nonzero()
    both = kd_loss(student, teacher, labels, mask=mask, backend=backend)
    assert torch.allclose(both, want_both, rtol=1e-6)


def test_when_no_row_counts_the_loss_and_the_gradient_are_zero(backend):
    student, teacher = pair(4, 30)
    none = torch.zeros(4, dtype=torch.bool)
    for reduction in ("none", "sum", "mean", "batchmean"):
        loss, grad = run(student, teacher, backend, mask=none, reduction=reduction)
        assert not loss.count_nonzero()
        assert not grad.count_nonzero()
    student.requires_grad_()
    ignored = torch.full((4,), -100)
    loss = kd_loss(student, teacher, ignored, alpha=0.0, backend=backend)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, student)[0].count_nonzero()


@pytest.mark.quick(backend="triton")
def test_several_runs_give_the_same_bits(backend):
    student, teacher = pair(33, 777)
    labels = torch.arange(33)
    first = run(student, teacher, backend, temperature=2.0)
    first_both = kd_loss(student, teacher, labels, backend=backend)
    for _ in range(2 if backend == "triton" and not torch.cuda.is_available() else 9):  # its interpreter has no races
        again = run(student, teacher, backend, temperature=2.0)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert torch.equal(kd_loss(student, teacher, labels, backend=backend), first_both)


@pytest.mark.parametrize("shape", [(131, 1000), (3, 40000), (2, 64, 7, 9)])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_number_of_threads_changes_no_bit(divergence, shape, require):
    require("softmax_kl", "cpu")
    student, teacher = pair(*shape)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(run(student, teacher, "cpu", divergence=divergence, dim=1))
    finally:
        torch.set_num_threads(before)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_inputs_are_left_as_they_are(backend):
    student, teacher = pair(9, 100)
    weight, mask, labels = torch.rand(9), torch.rand(9) < 0.5, torch.arange(9)
    tensors = [student, teacher, weight, mask, labels]
    copies = [x.clone() for x in tensors]
    run(student, teacher, backend, weight=weight, mask=mask)
    kd_loss(student, teacher, labels, mask=mask, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))


def test_a_row_longer_than_2_31_elements_away_is_found(backend):
    """Offsets are 64 bits wide: one row at each end of a view whose row stride passes 2^31 elements."""
    if backend != "cpu":
        pytest.skip("4 GiB of address space; the C++ kernel is the one whose offsets are computed by hand here")
    stride = (1 << 31) + 64
    storage = torch.empty(stride + 64, dtype=torch.bfloat16)  # never touched but for the two rows
    student = storage.as_strided((2, 50), (stride, 1))
    values, teacher = pair(2, 50, dtype=torch.bfloat16)
    student.copy_(values)
    loss, grad = run(student, teacher, backend)
    want, want_grad = run(values, teacher, backend)
    assert torch.equal(loss, want)
    assert torch.equal(grad, want_grad)


@pytest.mark.parametrize("gap", [1e-2, 1e-4])
def test_a_class_without_probability_that_the_sides_disagree_about_costs_no_digits(backend, gap):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(16, 100, generator=generator)
    teacher = student + gap * torch.randn(16, 100, generator=generator)
    student[:, 0], teacher[:, 0] = -30.0, -23.0
    student.requires_grad_()
    wide = student.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(softmax_kl(wide, teacher.double(), backend="reference"), wide)
    (found,) = torch.autograd.grad(softmax_kl(student, teacher, backend=backend), student)
    assert float((found.double() - want).norm() / want.norm()) < 1e-6
