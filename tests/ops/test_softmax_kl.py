"""Values and gradients of softmax_kl and kd_loss on every backend, against float64 formulas written out in full."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import kdx
from kdx.ops import kd_loss, softmax_kl

DIVERGENCES = ["forward", "reverse", "jsd"]


def row_losses(student, teacher, temperature=1.0, divergence="forward", beta=0.5):
    """KL per row over the last dimension, in float64, from log-probabilities."""
    log_q = F.log_softmax(student.double() / temperature, -1)
    log_p = F.log_softmax(teacher.double() / temperature, -1)
    q, p = log_q.exp(), log_p.exp()
    if divergence == "forward":
        return (p * (log_p - log_q)).sum(-1)
    if divergence == "reverse":
        return (q * (log_q - log_p)).sum(-1)
    log_m = (beta * p + (1 - beta) * q).log()
    return beta * (p * (log_p - log_m)).sum(-1) + (1 - beta) * (q * (log_q - log_m)).sum(-1)


def pair(*shape, dtype=torch.float32, seed=0, gap=1.0):
    generator = torch.Generator().manual_seed(seed)
    student = 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    teacher = student + gap * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return student.to(dtype), teacher.to(dtype)


def leaves(*tensors):
    return tuple(x.detach().clone().requires_grad_() for x in tensors)


def close(actual, expected, bound):
    """Relative error by norm, in float64."""
    return (actual.double() - expected.double()).norm() <= bound * expected.double().norm() + 1e-300


# Half precision: the arithmetic is float32, so only the rounding of the gradient to its dtype may show.
BOUNDS = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-6, 2e-6), torch.bfloat16: (1e-6, 4e-3)}
BOUNDS[torch.float16] = (1e-6, 6e-4)


@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_loss_and_both_gradients_match_the_formula(backend, divergence, dtype):
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("the Triton kernels compute in float32")
    # float16 gradients are scaled up as a loss scaler would, since its subnormals have fewer digits.
    factor = 1e3 if dtype == torch.float16 else 1.7
    student, teacher = leaves(*pair(33, 100, dtype=dtype))
    loss = softmax_kl(student, teacher, temperature=2.0, divergence=divergence, beta=0.3, backend=backend)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    grads = torch.autograd.grad(factor * loss, (student, teacher))
    s, t = leaves(student.double(), teacher.double())
    expected = 4 * row_losses(s, t, 2.0, divergence, 0.3).mean()
    expected_grads = torch.autograd.grad(factor * expected, (s, t))
    loss_bound, grad_bound = BOUNDS[dtype]
    assert close(loss, expected, loss_bound)
    for grad, want in zip(grads, expected_grads, strict=True):
        assert grad.dtype == dtype
        assert close(grad, want, grad_bound)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
def test_reductions_weights_and_mask_follow_their_definitions(backend, reduction, weighted, masked):
    student, teacher = leaves(*pair(12, 20))
    weight = torch.linspace(0.1, 2.0, 12) if weighted else None
    mask = torch.arange(12) % 3 != 1 if masked else None
    upstream = torch.linspace(-1, 2, 12) if reduction == "none" else torch.tensor(1.7)

    def expected(s, t):
        rows = row_losses(s, t, 3.0)
        rows = rows * weight if weighted else rows
        rows = torch.where(mask, rows, 0.0) if masked else rows
        count = int(mask.sum()) if masked else 12
        return {"none": rows, "sum": rows.sum(), "batchmean": rows.sum() / count, "mean": rows.sum() / count / 20}[
            reduction
        ]

    call = {"temperature": 3.0, "weight": weight, "mask": mask, "scale_by_t2": False, "reduction": reduction}
    loss = softmax_kl(student, teacher, **call, backend=backend)
    s, t = leaves(student.double(), teacher.double())
    want = expected(s, t)
    assert loss.shape == want.shape
    assert close(loss, want, 1e-6)
    grads = torch.autograd.grad((loss * upstream).sum(), (student, teacher))
    wants = torch.autograd.grad((want * upstream).sum(), (s, t))
    for grad, grad_want in zip(grads, wants, strict=True):
        assert close(grad, grad_want, 2e-6)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")  # which is what is compared here
@pytest.mark.parametrize("reduction", ["sum", "mean", "batchmean"])
def test_reductions_mean_what_kl_div_means_by_them(backend, reduction):
    student, teacher = pair(7, 11)
    log_q, log_p = F.log_softmax(student.double(), -1), F.log_softmax(teacher.double(), -1)
    want = F.kl_div(log_q, log_p, reduction=reduction, log_target=True)
    assert close(softmax_kl(student, teacher, reduction=reduction, backend=backend), want, 1e-6)


def test_temperature_squared_is_on_by_default_and_can_be_switched_off(backend):
    student, teacher = pair(5, 9)
    with_t2 = softmax_kl(student, teacher, temperature=4.0, backend=backend)
    without = softmax_kl(student, teacher, temperature=4.0, scale_by_t2=False, backend=backend)
    assert close(with_t2, 16 * without, 1e-6)


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "mean"])
@pytest.mark.parametrize("case", ["all", "mask", "ignored", "nothing"])
def test_kd_loss_averages_each_term_over_its_own_rows(backend, case, reduction):
    student, teacher = leaves(*pair(12, 20))
    labels = torch.arange(12) * 7 % 20
    mask = torch.arange(12) % 3 != 1 if case in ("mask", "nothing") else None
    if case in ("ignored", "mask"):
        labels[::4] = -100
    if case == "nothing":
        mask = torch.zeros(12, dtype=torch.bool)

    def expected(s, t):
        live = torch.ones(12, dtype=torch.bool) if mask is None else mask
        labelled = live & (labels != -100)
        kl = torch.where(live, 4 * row_losses(s, t, 2.0), 0.0)
        ce = torch.where(labelled, F.cross_entropy(s, labels.clamp(min=0), reduction="none"), 0.0)
        if reduction == "none":
            return 0.7 * kl + 0.3 * ce
        if reduction == "sum":
            return (0.7 * kl + 0.3 * ce).sum()
        return 0.7 * kl.sum() / max(int(live.sum()), 1) + 0.3 * ce.sum() / max(int(labelled.sum()), 1)

    loss = kd_loss(
        student, teacher, labels, temperature=2.0, alpha=0.7, mask=mask, reduction=reduction, backend=backend
    )
    s, t = leaves(student.double(), teacher.double())
    want = expected(s, t)
    assert loss.shape == want.shape
    assert close(loss, want, 1e-6)
    upstream = torch.linspace(-1, 2, 12) if reduction == "none" else torch.tensor(1.7)
    grads = torch.autograd.grad((loss * upstream).sum(), (student, teacher))
    wants = torch.autograd.grad((want * upstream).sum(), (s, t))
    for grad, grad_want in zip(grads, wants, strict=True):
        assert close(grad, grad_want, 2e-6)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_kd_loss_at_the_ends_of_alpha_is_one_of_its_terms(backend, alpha):
    student, teacher = pair(6, 10)
    labels = torch.arange(6)
    loss = kd_loss(student, teacher, labels, temperature=4.0, alpha=alpha, backend=backend)
    want = 16 * row_losses(student, teacher, 4.0).mean() if alpha else F.cross_entropy(student.double(), labels)
    assert close(loss, want, 1e-6)


@pytest.mark.quick(backend="triton", dim=[1, -1])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (2, 3, 4, 5), (2, 1, 3, 2, 5)])
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_the_classes_may_be_any_dimension(backend, shape, dim):
    if dim >= len(shape):
        pytest.skip(f"{shape} has no dimension {dim}")
    student, teacher = leaves(*pair(*shape))
    rows = torch.linspace(0.5, 1.5, student.numel() // shape[dim]).reshape(student.sum(dim).shape)
    loss = softmax_kl(student, teacher, temperature=2.0, dim=dim, weight=rows, reduction="none", backend=backend)
    s, t = leaves(student.double(), teacher.double())
    want = 4 * rows * row_losses(s.movedim(dim, -1), t.movedim(dim, -1), 2.0)
    assert loss.shape == want.shape
    # single rows: a GPU's exponential is 2 ulp off, and the budget of the op is 1e-5
    assert close(loss, want, 1e-6 if backend in ("reference", "cpu") else 1e-5)
    grads = torch.autograd.grad((loss * rows).sum(), (student, teacher))
    for grad, grad_want in zip(grads, torch.autograd.grad((want * rows).sum(), (s, t)), strict=True):
        assert close(grad, grad_want, 2e-6)
    total = softmax_kl(student, teacher, temperature=2.0, dim=dim, backend=backend)
    assert close(total, 4 * row_losses(s.movedim(dim, -1), t.movedim(dim, -1), 2.0).mean(), 1e-6)
    summed = torch.autograd.grad(total, student)[0]
    want_total = 4 * row_losses(s.movedim(dim, -1), t.movedim(dim, -1), 2.0).mean()
    assert close(summed, torch.autograd.grad(want_total, s)[0], 2e-6)


def test_mixed_dtypes_are_computed_in_the_wider_one(backend):
    student, teacher = pair(9, 30)
    student = student.to(torch.bfloat16).requires_grad_()
    loss = softmax_kl(student, teacher, backend=backend)
    assert close(loss, row_losses(student, teacher).mean(), 1e-6)
    (grad,) = torch.autograd.grad(loss, student)
    assert grad.dtype == torch.bfloat16


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_backends_agree_on_a_batch_of_tokens(backend, divergence):
    student, teacher = leaves(*pair(2, 7, 131))
    losses = [
        softmax_kl(student, teacher, temperature=2.0, divergence=divergence, beta=0.9, backend=name)
        for name in (backend, "reference")
    ]
    grads = [torch.autograd.grad(loss, (student, teacher)) for loss in losses]
    assert close(losses[0], losses[1], 1e-6)
    for grad, want in zip(*grads, strict=True):
        assert close(grad, want, 2e-6)


def test_equal_logits_give_a_loss_and_gradients_of_exactly_zero(backend):
    student, _ = pair(8, 100)
    for divergence in DIVERGENCES:
        s, t = leaves(student, student)
        loss = softmax_kl(s, t, temperature=3.0, divergence=divergence, backend=backend)
        grads = torch.autograd.grad(loss, (s, t))
        assert loss.item() == 0
        assert not any(grad.count_nonzero() for grad in grads)


def test_repeating_the_batch_leaves_batchmean_unchanged(backend):
    student, teacher = pair(16, 50)
    once = softmax_kl(student, teacher, backend=backend)
    twice = softmax_kl(student.repeat(2, 1), teacher.repeat(2, 1), backend=backend)
    assert close(twice, once, 1e-6)


def test_a_constant_added_to_a_row_costs_no_more_than_the_rounding_of_the_logits(backend):
    student, teacher = pair(16, 50, gap=1e-2)
    shifted = student + 64.0, teacher - 64.0
    loss = softmax_kl(*shifted, backend=backend)
    # t - s lies near 128, where float32 has steps of 1.5e-5: half a step, of a gap of 1e-2, twice in a square.
    assert close(loss, row_losses(*shifted).mean(), 2 * 0.75e-5 / 1e-2)


def test_at_high_temperature_the_gradient_is_centred_logit_matching(backend):
    student, teacher = leaves(*pair(4, 50, dtype=torch.float32 if backend == "triton" else torch.float64))
    loss = softmax_kl(student, teacher, temperature=1e4, reduction="sum", backend=backend)
    (grad,) = torch.autograd.grad(loss, student)
    gap = (student - teacher).detach()
    assert close(grad, (gap - gap.mean(-1, keepdim=True)) / 50, 1e-3)


def test_the_three_divergences_meet_where_they_must(backend):
    """KL(p||q) as reverse of the swapped pair; JSD(1/2) symmetric and below log 2."""
    student, teacher = pair(6, 40)
    forward = softmax_kl(student, teacher, backend=backend)
    assert close(softmax_kl(teacher, student, divergence="reverse", backend=backend), forward, 1e-6)
    jsd = softmax_kl(student, teacher, divergence="jsd", backend=backend)
    assert close(softmax_kl(teacher, student, divergence="jsd", backend=backend), jsd, 1e-6)
    assert 0 < jsd.item() < torch.log(torch.tensor(2.0)).item()


def test_the_package_attribute_stays_the_function_after_importing_its_modules():
    from kdx.ops._softmax_kl import reference  # noqa: F401  # the import is what is tested

    assert callable(kdx.ops.softmax_kl)
