"""topk_kl: the loss against a few classes of the teacher's, against formulas over all classes in float64."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from kdx.ops import SparseTargets, linear_kl, softmax_kl, topk_kl
from tests.ops.test_linear_kl import apart, divergence_rows, gradients

OP = "topk_kl"
N, V, K = 13, 37, 5
chunks = import_module("kdx.ops._topk_kl.chunks")
linear_chunks = import_module("kdx.ops._linear_kl.chunks")


def drawn(dtype=torch.float32, gap: float | None = None):
    """Logits of both sides."""
    generator = torch.Generator().manual_seed(0)
    z_s = 2 * torch.randn(N, V, generator=generator, dtype=torch.float64)
    z_t = 2 * torch.randn(N, V, generator=generator, dtype=torch.float64)
    z_t = z_t if gap is None else z_s + gap * z_t
    return z_s.to(dtype).requires_grad_(), z_t


def top(z_t: torch.Tensor, k: int = K, temperature: float = 1.0, **options) -> SparseTargets:
    logprobs, ids = F.log_softmax(z_t / temperature, -1).topk(k, -1)
    return SparseTargets(ids, logprobs.to(options.pop("dtype", torch.float32)), temperature=temperature, **options)


def even(z_t: torch.Tensor, k: int = K, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities over all classes, what the k leave shared by the others."""
    logprobs = F.log_softmax(z_t / temperature, -1)
    known, ids = logprobs.topk(k, -1)
    rest = torch.log1p(-known.exp().sum(-1, keepdim=True)) - torch.tensor(float(V - k)).log()
    return rest.expand(-1, V).scatter(1, ids, known)


def bucket(z: torch.Tensor, ids: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of the classes and of all others together."""
    logprobs = F.log_softmax(z.double() / temperature, -1)
    listed = torch.zeros_like(logprobs).scatter(1, ids, 1.0).bool()
    rest = torch.where(listed, -torch.inf, logprobs).logsumexp(1, keepdim=True)
    return torch.cat([logprobs.gather(1, ids), rest], 1)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("tail", ["bucket", "even"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_bucket_and_even_are_divergences_of_what_they_say(backend, tail, divergence, temperature) -> None:
    z_s, z_t = drawn()
    targets = top(z_t, temperature=temperature)
    options = {"divergence": divergence, "temperature": temperature, "beta": 0.3}
    loss = topk_kl(z_s, targets, tail=tail, **options, backend=backend)
    if tail == "bucket":
        both = bucket(z_s, targets.ids, temperature), bucket(z_t, targets.ids, temperature)
        want = divergence_rows(*both, divergence=divergence, beta=0.3)
    else:
        want = divergence_rows(z_s.double(), temperature * even(z_t, temperature=temperature), **options)
    want = temperature**2 * want.mean()
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    assert apart(gradients(loss, [z_s])[0], gradients(want, [z_s])[0]) < 1e-5


@pytest.mark.parametrize("tail", ["renormalise", "drop"])
def test_the_other_tails_are_sums_over_the_listed_classes(backend, tail) -> None:
    z_s, z_t = drawn()
    targets = top(z_t, temperature=2.0)
    loss = topk_kl(z_s, targets, tail=tail, temperature=2.0, backend=backend)
    log_p = targets.logprobs.double()
    log_p = log_p - log_p.logsumexp(-1, keepdim=True) if tail == "renormalise" else log_p
    log_q = F.log_softmax(z_s.double() / 2, -1).gather(1, targets.ids)
    want = 4 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    assert apart(gradients(loss, [z_s])[0], gradients(want, [z_s])[0]) < 1e-5


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("tail", ["bucket", "even"])
def test_all_classes_are_the_dense_loss(backend, tail, divergence) -> None:
    z_s, z_t = drawn()
    loss = topk_kl(z_s, top(z_t, V), tail=tail, divergence=divergence, backend=backend)
    dense = softmax_kl(z_s.double(), z_t, divergence=divergence, backend="reference")
    assert loss.item() == pytest.approx(dense.item(), rel=1e-5)
    assert apart(gradients(loss, [z_s])[0], gradients(dense, [z_s])[0]) < 1e-5


def test_where_the_sides_agree_the_bucket_and_its_gradient_are_nothing(backend) -> None:
    z_s, _ = drawn()
    targets = top(z_s.detach())
    loss = topk_kl(z_s, targets, backend=backend)
    assert 0 <= loss.item() < 1e-12
    assert gradients(loss, [z_s])[0].abs().max() < 1e-6
    assert topk_kl(z_s, targets, tail="even", backend=backend).item() > 1e-2  # which is why it is not the default


def test_the_gradient_of_samples_is_the_full_one_in_expectation() -> None:
    z_s, z_t = drawn()
    generator = torch.Generator().manual_seed(0)
    log_p = F.log_softmax(z_t, -1)
    (full,) = gradients(softmax_kl(z_s.double(), z_t, backend="reference"), [z_s])
    errors = []
    for count in (1_000, 100_000):
        ids = torch.multinomial(log_p.exp(), count, replacement=True, generator=generator)
        targets = SparseTargets(ids, log_p.gather(1, ids).float(), kind="sampled")
        errors.append(apart(gradients(topk_kl(z_s, targets), [z_s])[0], full))
    assert errors[1] < 0.02
    assert errors[0] / errors[1] == pytest.approx(10.0, rel=0.5)  # as the error of a mean falls


def test_rows_with_fewer_classes_take_those_they_have(backend) -> None:
    z_s, z_t = drawn()
    targets = top(z_t)
    valid = torch.arange(K) < torch.tensor([[5], [3], [1]]).repeat(5, 1)[:N]
    valid[4] = False  # nothing is known of it
    ragged = SparseTargets(torch.where(valid, targets.ids, 10**6), targets.logprobs, valid=valid)
    rows = topk_kl(z_s, ragged, reduction="none", backend=backend)
    for row in range(N):
        few = int(valid[row].sum())
        if few == 0:
            assert rows[row] == 0
            continue
        alone = top(z_t[row : row + 1], few)
        want = topk_kl(z_s[row : row + 1], alone, backend="reference")
        assert rows[row].item() == pytest.approx(want.item(), rel=1e-5)
    mean = topk_kl(z_s, ragged, backend=backend)
    assert mean.item() == pytest.approx(rows.sum().item() / (N - 1), rel=1e-6)


@pytest.mark.parametrize("tail", ["bucket", "even", "drop"])
def test_labels_masks_weights_and_chunks(backend, tail, monkeypatch) -> None:
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 3 * 4 * V * 4)  # four rows
    z_s, z_t = drawn()
    labels = torch.arange(N) % V
    labels[::5] = -100
    mask, weight = torch.arange(N) % 4 != 0, torch.linspace(0.5, 2.0, N)
    with torch.no_grad():
        z_s[0] = float("nan")  # does not count
    options = {"labels": labels, "alpha": 0.6, "mask": mask, "weight": weight, "temperature": 2.0}
    loss = topk_kl(z_s, top(z_t, temperature=2.0), tail=tail, **options, backend=backend)
    counted = mask & (labels != -100)
    rows = topk_kl(z_s[counted], top(z_t[counted], temperature=2.0), tail=tail, reduction="none", temperature=2.0)
    ce = F.cross_entropy(z_s[counted].double(), labels[counted], reduction="none")
    want = (weight[counted] * (0.6 * rows.double() + 0.4 * ce)).mean()
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    (found,) = gradients(loss, [z_s])
    assert apart(found, torch.nan_to_num(gradients(want, [z_s])[0])) < 1e-5
    assert not found[~counted].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(backend, dtype) -> None:
    z_s, z_t = drawn(dtype)
    if dtype == torch.float64 and backend == "triton":
        pytest.skip("no float64 kernel")
    loss = topk_kl(z_s, top(z_t, dtype=torch.float64), backend=backend)
    want = divergence_rows(bucket(z_s, top(z_t).ids), bucket(z_t, top(z_t).ids)).mean()
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    (found,) = gradients(loss, [z_s])
    assert found.dtype == dtype
    assert apart(found, gradients(want, [z_s])[0]) < (1e-6 if dtype == torch.float64 else 5e-3)


@pytest.mark.parametrize("tail", ["bucket", "even", "renormalise", "drop"])
def test_first_and_second_derivatives_are_right(tail) -> None:
    z_s, z_t = drawn(torch.float64)
    targets, small = top(z_t[:2, :6], 3, dtype=torch.float64), z_s.detach()[:2, :6].requires_grad_()
    labels = torch.tensor([1, -100])

    def loss(z):
        return topk_kl(z, targets, tail=tail, labels=labels, alpha=0.7, mask_by_labels=False)

    assert torch.autograd.gradcheck(loss, [small])
    assert torch.autograd.gradgradcheck(loss, [small])


@pytest.mark.parametrize("tail", ["bucket", "even", "renormalise"])
def test_a_head_against_a_few_classes_is_the_same_loss(backend, tail, monkeypatch) -> None:
    monkeypatch.setitem(linear_chunks.CHUNK_BYTES, "cpu", 3 * 4 * V * 4)
    generator = torch.Generator().manual_seed(1)
    x, w, b = (torch.randn(*shape, generator=generator).requires_grad_() for shape in ((N, 8), (V, 8), (V,)))
    _, z_t = drawn()
    labels = torch.arange(N) % V
    options = {"tail": tail, "labels": labels, "alpha": 0.5, "backend": backend}
    loss = linear_kl(x, w, top(z_t), student_bias=b, student_softcap=9.0, **options)
    dense = topk_kl(9.0 * torch.tanh((x @ w.T + b) / 9.0), top(z_t), **options)
    assert loss.item() == pytest.approx(dense.item(), rel=1e-5)
    for found, right in zip(gradients(loss, [x, w, b]), gradients(dense, [x, w, b]), strict=True):
        assert apart(found, right) < 1e-5


def test_second_derivatives_of_a_head_against_a_few_classes() -> None:
    generator = torch.Generator().manual_seed(1)
    x, w = (torch.randn(*size, generator=generator).double().requires_grad_() for size in ((2, 3), (6, 3)))
    targets = top(drawn()[1][:2, :6], 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, w: linear_kl(x, w, targets), [x, w])
    assert torch.autograd.gradgradcheck(lambda x, w: linear_kl(x, w, targets), [x, w])


def test_it_compiles_whole() -> None:
    z_s, z_t = drawn()
    targets = top(z_t)
    eager = 2 * topk_kl(z_s, targets)
    compiled = torch.compile(lambda z: 2 * topk_kl(z, targets), fullgraph=True, backend="aot_eager")(z_s)
    assert compiled.item() == pytest.approx(eager.item(), rel=1e-6)
    assert apart(gradients(compiled, [z_s])[0], gradients(eager, [z_s])[0]) < 1e-6


def test_targets_of_another_kind_are_refused() -> None:
    ids, logprobs = torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.3]]).log()
    for options, error, message in (
        ({"logprobs": torch.tensor([[2.0, 1.0]])}, ValueError, "expected log-probabilities, which are 0 at most"),
        ({"logprobs": torch.tensor([[0.9, 0.8]]).log()}, ValueError, "add up to 1.700, more than 1"),
        ({"ids": ids.float()}, TypeError, "ids: expected int64"),
        ({"ids": ids[:, :1]}, ValueError, r"logprobs: expected the shape of ids, \[1, 1\]"),
        ({"tail": torch.zeros(2)}, ValueError, r"tail: expected one per row, \[1\]"),
        ({"valid": torch.ones(1, 2)}, TypeError, "valid: expected bool"),
        ({"kind": "top"}, ValueError, "kind: expected 'topk' or 'sampled'"),
        ({"kind": "sampled", "tail": torch.zeros(1)}, ValueError, "tail: belongs to kind='topk'"),
        ({"temperature": 0.0}, ValueError, "temperature: expected"),
    ):
        with pytest.raises(error, match=message):
            SparseTargets(**({"ids": ids, "logprobs": logprobs} | options))


@pytest.mark.parametrize(
    ("targets", "options", "error", "message"),
    [
        ({}, {"temperature": 2.0}, ValueError, "temperature: the targets were taken at 1, got 2"),
        ({}, {"tail": "buckets"}, ValueError, "tail: there is no 'buckets'.*bucket"),
        ({}, {"tail": "drop", "divergence": "jsd"}, ValueError, "give forward KL alone"),
        ({"kind": "sampled"}, {"divergence": "reverse"}, ValueError, "samples give forward KL alone"),
        ({"kind": "sampled"}, {"tail": "even"}, ValueError, "samples have none"),
        ({"ids": torch.tensor([[0, V]] * N)}, {}, ValueError, "another vocabulary"),
        ({"ids": torch.tensor([[0, -3]] * N)}, {}, ValueError, "another vocabulary"),
        ({"ids": torch.tensor([[4, 4]] * N)}, {}, ValueError, "lists a class twice"),
        ({"ids": torch.tensor([[0, 1]]), "logprobs": torch.tensor([[0.5, 0.3]]).log()}, {}, ValueError, "one row"),
    ],
)
def test_bad_input_is_a_sentence(targets, options, error, message) -> None:
    given = {"ids": torch.tensor([[0, 1]] * N), "logprobs": torch.tensor([[0.5, 0.3]] * N).log()} | targets
    for call in (
        lambda: topk_kl(torch.zeros(N, V), SparseTargets(**given), **options),
        lambda: linear_kl(torch.zeros(N, 4), torch.zeros(V, 4), SparseTargets(**given), **options),
    ):
        with pytest.raises(error, match=message):
            call()


def test_targets_that_are_none_are_refused() -> None:
    with pytest.raises(TypeError, match=r"targets: expected kdx\.ops\.SparseTargets, got Tensor"):
        topk_kl(torch.zeros(N, V), torch.zeros(N, V))
    with pytest.raises(ValueError, match="teacher_weight: belongs to a head"):
        linear_kl(torch.zeros(N, 4), torch.zeros(V, 4), top(drawn()[1]), torch.zeros(V, 4))
