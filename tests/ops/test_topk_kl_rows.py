"""topk_kl's kernels row by row: tails, dtypes and temperatures against the reference in float64, and awkward rows."""

from __future__ import annotations

import math
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kdx.errors import BackendError
from kdx.ops import SparseTargets, _native, linear_kl, topk_kl
from kdx.ops._linear_kl.call import BUCKET, RENORMALISE, Options, Rows
from tests.ops.test_linear_kl import apart, gradients

OP = "topk_kl"
CHUNK = 1024  # csrc/cpu/topk_kl_rows.h
LOSSES = [
    ("bucket", "forward"),
    ("bucket", "reverse"),
    ("bucket", "jsd"),
    ("even", "forward"),
    ("even", "reverse"),
    ("even", "jsd"),
    ("renormalise", "forward"),
    ("drop", "forward"),
    ("sampled", "forward"),
]


def rows(
    n: int, classes: int, k: int, dtype=torch.float32, *, gap: float = 1.0, temperature: float = 1.0, seed: int = 0
):
    """Logits of the student and the teacher's k most probable classes, whose order is not that of their numbers."""
    generator = torch.Generator().manual_seed(seed)
    student = (3 * torch.randn(n, classes, generator=generator, dtype=torch.float64)).to(dtype)
    teacher = student.double() + gap * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    every = F.log_softmax(teacher / temperature, -1)
    logprobs, ids = every.topk(k, -1)
    tail = every.scatter(1, ids, -torch.inf).logsumexp(1)
    return student.requires_grad_(), ids, logprobs, tail


def both(student, targets, backend, **options):
    """Loss and gradient of a backend, then those of the reference in float64."""
    loss = topk_kl(student, targets, backend=backend, **options)
    right = topk_kl(student.double(), targets, backend="reference", **options)
    return loss, gradients(loss.sum(), [student])[0], right, gradients(right.sum(), [student])[0]


def targets_of(ids, logprobs, tail, kind: str, temperature: float) -> tuple[SparseTargets, dict]:
    if kind == "sampled":
        return SparseTargets(ids, logprobs, temperature=temperature, kind="sampled"), {}
    return SparseTargets(ids, logprobs, tail, temperature=temperature), {"tail": kind}


@pytest.mark.quick(backend="triton", dtype=[torch.float32], divergence=["forward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("tail", "divergence"), LOSSES)
def test_every_tail_dtype_and_temperature(backend, tail, divergence, dtype) -> None:
    if dtype == torch.float64 and backend == "triton":
        pytest.skip("no float64 kernel")
    narrow = {torch.float32: 2e-6, torch.float64: 1e-12}.get(dtype, 5e-3)
    for n, classes, k, temperature in ((3, 41, 5, 1.0), (2, 2 * CHUNK + 7, 33, 2.0), (2, CHUNK, 1, 1.0)):
        student, *few = rows(n, classes, k, dtype, temperature=temperature)
        targets, options = targets_of(*few, tail, temperature)
        labels = few[0][:, 0].clone()  # one that is listed, one that is not
        labels[-1] = next(c for c in range(classes) if c not in few[0][-1].tolist())
        for more in ({}, {"labels": labels, "alpha": 0.6}):
            call = options | more | {"temperature": temperature, "divergence": divergence, "beta": 0.3}
            loss, grad, right, want = both(student, targets, backend, reduction="none", **call)
            assert torch.allclose(loss.double(), right, rtol=1e-5 if dtype != torch.float64 else 1e-12, atol=1e-7)
            assert apart(grad, want) < narrow, (n, classes, k, temperature, more.keys())
            alone = topk_kl(student.detach(), targets, backend=backend, reduction="none", **call)
            assert torch.allclose(alone, loss.detach(), rtol=1e-6)  # without a gradient, nothing is kept on the way


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3])
def test_near_the_teacher_no_digits_are_lost(backend, gap) -> None:
    student, ids, logprobs, tail = rows(4, 3000, 16, gap=gap)
    targets = SparseTargets(ids, logprobs, tail)
    loss, grad, right, want = both(student, targets, backend, reduction="none")
    # The targets are float32 in the kernels: what that rounds is a share of how far the sides are apart.
    assert torch.allclose(loss.double(), right, rtol=2e-5 / gap, atol=0)
    assert bool((loss >= 0).all())
    assert apart(grad, want) < 1e-6 / gap


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_at_agreement_there_is_no_gradient_and_no_negative_loss(backend, divergence) -> None:
    student, ids, logprobs, tail = rows(3, 2500, 8, gap=0.0)
    loss = topk_kl(
        student, SparseTargets(ids, logprobs, tail), divergence=divergence, reduction="none", backend=backend
    )
    assert bool((loss >= 0).all())
    assert loss.max() < 1e-11
    assert gradients(loss.sum(), [student])[0].abs().max() < 5e-7


def test_a_rest_far_below_the_listed_classes_keeps_its_digits(backend) -> None:
    student, ids, _, _ = rows(2, 1500, 4)
    with torch.no_grad():
        student.scatter_add_(1, ids, torch.full(ids.shape, 150.0))  # exp(-150) is no float32
    targets = SparseTargets(ids, torch.full(ids.shape, 0.25).log(), torch.full((2,), -140.0))
    loss, grad, right, want = both(student, targets, backend, divergence="reverse")
    assert loss.item() == pytest.approx(right.item(), rel=1e-5)
    assert apart(grad, want) < 1e-5
    labels = torch.full((2,), int(ids[0, 0]))
    loss, grad, right, want = both(student, targets, backend, labels=labels, alpha=0.3)
    assert loss.item() == pytest.approx(right.item(), rel=1e-5)
    assert apart(grad, want) < 1e-5


def test_classes_that_neither_side_has_change_nothing(backend) -> None:
    student, ids, logprobs, tail = rows(3, 1100, 6)
    listed = torch.zeros(3, 1100, dtype=torch.bool).scatter(1, ids, True)
    with torch.no_grad():
        student[~listed & (torch.arange(1100) % 3 == 0)] = -torch.inf
        student[:, 1024:] = torch.where(listed[:, 1024:], student[:, 1024:], -torch.inf)  # a chunk of them alone
    for kind in ("bucket", "drop"):
        loss, grad, right, want = both(student, SparseTargets(ids, logprobs, tail), backend, tail=kind)
        assert loss.item() == pytest.approx(right.item(), rel=1e-5)
        assert apart(grad, want) < 2e-6
        assert not grad[student == -torch.inf].any()


def test_a_row_with_nan_spoils_itself_alone(backend) -> None:
    student, ids, logprobs, tail = rows(3, 1030, 4)
    for place in (int(ids[1, 0]), next(c for c in range(1030) if c not in ids[1].tolist())):
        for bad in (math.nan, math.inf):
            z = student.detach().clone()
            z[1, place] = bad
            z.requires_grad_()
            for kind in ("bucket", "renormalise"):
                loss = topk_kl(z, SparseTargets(ids, logprobs, tail), tail=kind, reduction="none", backend=backend)
                grad = gradients(loss.sum(), [z])[0]
                assert loss.isfinite().tolist() == [True, False, True]
                assert bool(grad[1].isnan().any())
                assert bool(grad[[0, 2]].isfinite().all())


def test_samples_may_name_a_class_often(backend) -> None:
    student, _, _, _ = rows(3, 1500, 4)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 5, (3, 40), generator=generator) * 300
    logprobs = torch.full(ids.shape, -2.0)
    valid = torch.arange(40) < torch.tensor([[40], [17], [1]])
    loss, grad, right, want = both(student, SparseTargets(ids, logprobs, valid=valid, kind="sampled"), backend)
    assert loss.item() == pytest.approx(right.item(), rel=1e-5)
    assert apart(grad, want) < 2e-6


def test_rows_that_lie_apart_are_read_where_they_lie(backend) -> None:
    student, ids, logprobs, tail = rows(4, 1100, 5)
    wide = torch.full((4, 1400), math.nan)
    wide[:, 150:1250] = student.detach()
    view = wide[:, 150:1250].requires_grad_()
    loss = topk_kl(view, SparseTargets(ids, logprobs, tail), backend=backend)
    right = topk_kl(student, SparseTargets(ids, logprobs, tail), backend=backend)
    assert loss.item() == right.item()
    assert torch.equal(gradients(loss, [view])[0], gradients(right, [student])[0])
    across = student.detach().T.contiguous().T.requires_grad_()
    assert topk_kl(across, SparseTargets(ids, logprobs, tail), backend=backend).item() == right.item()


@pytest.mark.parametrize("tail", ["bucket", "even", "drop"])
def test_a_class_listed_twice_is_refused_by_every_backend(backend, tail) -> None:
    ids = torch.tensor([[3, 1], [4, 4]])
    targets = SparseTargets(ids, torch.full((2, 2), 0.3).log())
    for call in (
        lambda: topk_kl(torch.zeros(2, 9), targets, tail=tail, backend=backend),
        lambda: topk_kl(torch.zeros(2, 9, requires_grad=True), targets, tail=tail, backend=backend),
        lambda: linear_kl(torch.zeros(2, 4), torch.zeros(9, 4), targets, tail=tail, backend=backend),
    ):
        with pytest.raises(ValueError, match=r"targets\.ids: a row lists a class twice"):
            call()


def test_the_number_of_threads_changes_no_bit(require) -> None:
    require(OP, "cpu")
    student, ids, logprobs, tail = rows(60, 1500, 16)
    targets = SparseTargets(ids, logprobs, tail)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        loss = topk_kl(student, targets, reduction="none", backend="cpu")
        found.append((loss, gradients(loss.sum(), [student])[0]))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_a_library_that_was_built_before_says_so() -> None:
    targets = SparseTargets(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.3]]).log())
    with (
        _native.override("cpu", SimpleNamespace()),
        pytest.raises(BackendError, match=r"kdx_ext\._cpu is older than kdx, it has no topk_kl; run `pip install"),
    ):
        topk_kl(torch.zeros(1, 4), targets)


class Made(TorchDispatchMode):
    """The memory of every tensor that is made of so many numbers or more, by its address."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.found = least, {}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor) and x.numel() >= self.least:
                self.found[x.untyped_storage().data_ptr()] = x  # kept, so that no address is used again
        return out


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_the_targets_are_never_spread_over_all_classes(backend, tail) -> None:
    if backend == "reference":
        pytest.skip("it is there to be right")
    n, classes = 6, 3000
    student, ids, logprobs, tail_mass = rows(n, classes, 8)
    module = import_module(f"kdx.ops._topk_kl.{backend}")
    known = torch.cat([logprobs, tail_mass[:, None]], 1).float()
    numbers = Rows(torch.ones(n), None, None)
    mode = {"bucket": BUCKET, "renormalise": RENORMALISE}[tail]
    options = Options(classes, mode, 1.0, 0, 0.5, 1.0, 0.0, False, backend)
    z = student.detach()
    for grad in (False, True):
        with Made(n * classes // 2) as made:
            module.forward(z, ids, known, numbers, options, grad=grad)
        assert len([x for at, x in made.found.items() if at != z.untyped_storage().data_ptr()]) == int(grad)
