"""linear_kl: the loss of two heads against all their logits in float64, and what holds of chunks, rows and memory."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

import kdx
from kdx.ops import linear_kl, softmax_kl

OP = "linear_kl"
N, H, V = 21, 16, 67
LABELS = torch.zeros(N, dtype=torch.int64)
chunks = import_module("kdx.ops._linear_kl.chunks")


def sides(dtype=torch.float32, gap: float | None = None, bias: bool = False, classes: int = V):
    """Hidden states and heads; the teacher near the student by ``gap``, or one of its own."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x_s, w_s, b_s = drawn(N, H), drawn(classes, H), drawn(classes)
    x_t, w_t, b_t = drawn(N, H + 3), drawn(classes, H + 3), drawn(classes)
    if gap is not None:
        x_t, w_t, b_t = x_s + gap * drawn(N, H), w_s, b_s
    x_s, w_s, x_t, w_t, b_s, b_t = (x.to(dtype) for x in (x_s, w_s, x_t, w_t, b_s, b_t))
    student = [x.requires_grad_() for x in (x_s.clone(), w_s.clone(), *([b_s.clone()] if bias else []))]
    return student, [x_t, w_t, *([b_t] if bias else [])]


def logits(hidden, weight, bias=None, scale=1.0, softcap=None):
    z = hidden.double() @ weight.double().T
    z = scale * (z if bias is None else z + bias.double())
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def divergence_rows(z_s, z_t, temperature=1.0, divergence="forward", beta=0.5, skew=0.0):
    log_q, log_p = F.log_softmax(z_s / temperature, -1), F.log_softmax(z_t / temperature, -1)
    p, q = log_p.exp(), log_q.exp()
    if skew:
        first, other = (log_p, log_q) if divergence == "forward" else (log_q, log_p)
        mixture = torch.log1p((1 - skew) * torch.expm1(other - first))  # log(m / first)
        return (first.exp() * (torch.expm1(mixture) - mixture)).sum(-1)
    kl_forward, kl_reverse = (p * (log_p - log_q)).sum(-1), (q * (log_q - log_p)).sum(-1)
    if divergence == "forward" or (divergence == "jsd" and beta == 0):
        return kl_forward
    if divergence == "reverse" or (divergence == "jsd" and beta == 1):
        return kl_reverse
    log_m = (beta * p + (1 - beta) * q).log()
    return beta * (p * (log_p - log_m)).sum(-1) + (1 - beta) * (q * (log_q - log_m)).sum(-1)


def gradients(loss, student):
    return torch.autograd.grad(loss, student)


def apart(found: torch.Tensor, want: torch.Tensor) -> float:
    """The distance of two tensors over the norm of the second."""
    return float((found.double() - want.double()).norm() / want.double().norm().clamp(min=1e-30))


CASES = [
    pytest.param({}, {}, id="plain"),
    pytest.param({"bias": True}, {"temperature": 2.0}, id="bias"),
    pytest.param({}, {"student_softcap": 5.0, "teacher_softcap": 30.0, "student_scale": 0.25}, id="softcap and scale"),
    pytest.param({"bias": True}, {"divergence": "reverse", "temperature": 4.0}, id="reverse"),
    pytest.param({}, {"divergence": "jsd", "beta": 0.3, "teacher_scale": 0.5}, id="jsd"),
    pytest.param({}, {"divergence": "jsd", "beta": 0.0}, id="jsd 0"),
    pytest.param({"bias": True}, {"skew": 0.1, "temperature": 2.0}, id="skewed"),
    pytest.param({}, {"divergence": "reverse", "skew": 0.6, "student_softcap": 9.0}, id="skewed reverse"),
    pytest.param({}, {"divergence": "jsd", "beta": 1.0}, id="jsd 1"),
]


@pytest.mark.parametrize("small_chunks", [False, True], ids=["one chunk", "chunks"])
@pytest.mark.parametrize(("of_sides", "options"), CASES)
def test_loss_and_gradients_are_those_of_all_logits(backend, of_sides, options, small_chunks, monkeypatch) -> None:
    if small_chunks:
        monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 3 * 4 * V * 8)  # eight rows
    student, teacher = sides(**of_sides)
    biases = {"student_bias": student[2], "teacher_bias": teacher[2]} if len(student) == 3 else {}
    loss = linear_kl(*student[:2], *teacher[:2], **biases, **options, backend=backend)
    z_s = logits(*student, scale=options.get("student_scale", 1.0), softcap=options.get("student_softcap"))
    z_t = logits(*teacher, scale=options.get("teacher_scale", 1.0), softcap=options.get("teacher_softcap"))
    T = options.get("temperature", 1.0)
    kinds = {key: options[key] for key in ("divergence", "beta", "skew") if key in options}
    want = T**2 * divergence_rows(z_s, z_t, T, **kinds).mean()
    assert loss.item() == pytest.approx(want.item(), rel=2e-6)
    for found, right in zip(gradients(loss, student), gradients(want, student), strict=True):
        assert apart(found, right) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gap", [None, 1e-1, 1e-3])
@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_logits_of_half_precision_operands_are_not_rounded(backend, dtype, gap, divergence) -> None:
    if dtype == torch.float64 and backend == "triton":
        pytest.skip("no float64 kernel")
    student, teacher = sides(dtype, gap)
    loss = linear_kl(*student, *teacher, divergence=divergence, backend=backend)
    want = divergence_rows(logits(*student), logits(*teacher), divergence=divergence).mean()
    # near agreement the rounding of float32 logits is a share of what the two sides differ by
    eps = 1e-9 if dtype == torch.float64 else torch.finfo(torch.float32).eps
    budget = max(5e-6 if eps > 1e-8 else 1e-9, 3 * eps / (gap or 1.0))
    assert loss.item() == pytest.approx(want.item(), rel=2 * budget)
    halves = dtype in (torch.bfloat16, torch.float16)
    for found, right in zip(gradients(loss, student), gradients(want, student), strict=True):
        assert found.dtype == dtype
        assert apart(found, right) < (3e-3 if halves else budget)


def test_given_logits_of_the_teacher_count_as_its_head_does(backend) -> None:
    student, (x_t, w_t) = sides()
    both = linear_kl(*student, x_t, w_t, temperature=3.0, backend=backend)
    given = linear_kl(*student, x_t @ w_t.T, temperature=3.0, backend=backend)
    assert given.item() == pytest.approx(both.item(), rel=1e-5)
    for found, right in zip(gradients(given, student), gradients(both, student), strict=True):
        assert apart(found, right) < 1e-5


def labelled(seed: int = 1):
    labels = torch.randint(V, (N,), generator=torch.Generator().manual_seed(seed))
    labels[::4] = -100
    return labels


@pytest.mark.parametrize("mask_by_labels", [True, False])
def test_cross_entropy_comes_from_the_same_logits(backend, mask_by_labels) -> None:
    student, teacher = sides()
    labels, mask = labelled(), torch.arange(N) % 5 != 0
    options = {"alpha": 0.7, "temperature": 2.0, "mask": mask, "mask_by_labels": mask_by_labels}
    loss = linear_kl(*student, *teacher, labels=labels, **options, backend=backend)
    z_s, z_t = logits(*student), logits(*teacher)
    counted = mask & (labels != -100)
    kl = 4 * divergence_rows(z_s, z_t, 2.0)[counted if mask_by_labels else mask].mean()
    want = 0.7 * kl + 0.3 * F.cross_entropy(z_s[counted], labels[counted])
    assert loss.item() == pytest.approx(want.item(), rel=2e-6)
    for found, right in zip(gradients(loss, student), gradients(want, student), strict=True):
        assert apart(found, right) < 1e-5


def test_rows_that_do_not_count_are_never_read(backend) -> None:
    student, teacher = sides()
    mask = torch.arange(N) % 3 != 0
    clean = linear_kl(*student, *teacher, mask=mask, backend=backend)
    want = gradients(clean, student)
    with torch.no_grad():
        student[0][::6] = float("nan")
        teacher[0][::6] = float("inf")
    loss = linear_kl(*student, *teacher, mask=mask, backend=backend)
    found = gradients(loss, student)
    assert loss.equal(clean)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
    assert not found[0][::3].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_half_precision_that_do_not_count_are_left_out(backend, dtype) -> None:
    student, teacher = sides(dtype)
    mask = torch.arange(N) % 3 != 0
    loss = linear_kl(*student, *teacher, mask=mask, backend=backend)
    want = divergence_rows(logits(*student), logits(*teacher))[mask].mean()
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    assert apart_all(gradients(loss, student), gradients(want, student)) < 3e-3


def test_where_no_row_counts_it_is_a_connected_zero(backend) -> None:
    student, teacher = sides()
    loss = linear_kl(*student, *teacher, mask=torch.zeros(N, dtype=torch.bool), backend=backend)
    assert loss.item() == 0
    assert all(not each.any() for each in gradients(loss, student))


def test_a_class_that_neither_side_has_counts_for_nothing(backend) -> None:
    student, teacher = sides(bias=True)
    with torch.no_grad():
        student[2][V - 5 :] = float("-inf")
        teacher[2][V - 5 :] = float("-inf")
    loss = linear_kl(*student[:2], *teacher[:2], student_bias=student[2], teacher_bias=teacher[2], backend=backend)
    short = linear_kl(
        *(student[0], student[1][: V - 5], teacher[0], teacher[1][: V - 5]),
        **{"student_bias": student[2][: V - 5], "teacher_bias": teacher[2][: V - 5], "backend": backend},
    )
    assert loss.item() == pytest.approx(short.item(), rel=1e-6)
    assert all(each.isfinite().all() for each in gradients(loss, student))


def test_a_padded_vocabulary_is_a_slice(backend) -> None:
    student, teacher = sides(bias=True)
    w_t = torch.cat([teacher[1], torch.randn(9, H + 3)])
    b_t = torch.cat([teacher[2], torch.randn(9)])
    labels = labelled().clamp(max=59)
    options = {"student_bias": student[2], "labels": labels, "alpha": 0.5, "backend": backend}
    loss = linear_kl(*student[:2], teacher[0], w_t, teacher_bias=b_t, vocabulary=60, **options)
    found = gradients(loss, student)
    options |= {"student_bias": student[2][:60]}
    sliced = linear_kl(student[0], student[1][:60], teacher[0], w_t[:60], teacher_bias=b_t[:60], **options)
    assert loss.item() == pytest.approx(sliced.item(), rel=1e-6)
    for each, right in zip(found, gradients(sliced, student), strict=True):
        assert apart(each, right) < 1e-6


def test_any_chunks_give_the_same_loss_and_the_same_chunks_the_same_bits(monkeypatch) -> None:
    student, teacher = sides(gap=1e-2)
    losses, found = [], []
    for rows in (N, N, 8, 5, 1):
        monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 3 * 4 * V * rows)
        losses.append(linear_kl(*student, *teacher))
        found.append(gradients(losses[-1], student))
    assert losses[0].equal(losses[1])
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    ulp = torch.finfo(torch.float32).eps * losses[0].item()
    assert all(abs(each.item() - losses[0].item()) <= 2 * ulp for each in losses)
    for each in found[2:]:
        assert all(apart(a, b) < 1e-6 for a, b in zip(each, found[0], strict=True))


def test_micro_batches_with_the_number_of_all_tokens_are_one_batch(backend) -> None:
    student, teacher = sides()
    labels = labelled()
    tokens = (labels != -100).sum()
    whole = linear_kl(*student, *teacher, labels=labels, alpha=0.5, backend=backend)
    parts = [
        linear_kl(
            *(student[0][at], student[1], teacher[0][at], teacher[1]),
            **{"labels": labels[at], "alpha": 0.5, "num_items": tokens, "backend": backend},
        )
        for at in (slice(0, 18), slice(18, N))
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)
    for found, right in zip(gradients(sum(parts), student), gradients(whole, student), strict=True):
        assert apart(found, right) < 1e-6


def test_rows_have_their_own_losses_weights_and_upstream_gradients(backend) -> None:
    student, teacher = sides()
    weight = torch.linspace(0.0, 2.0, N)
    rows = linear_kl(*student, *teacher, weight=weight, reduction="none", backend=backend)
    want = weight * divergence_rows(logits(*student), logits(*teacher))
    assert torch.allclose(rows.double(), want, rtol=1e-5)
    upstream = torch.randn(N)
    found = torch.autograd.grad(rows, student, upstream)
    for each, right in zip(found, torch.autograd.grad(want, student, upstream.double()), strict=True):
        assert apart(each, right) < 1e-5
    total = linear_kl(*student, *teacher, weight=weight, reduction="sum", backend=backend)
    assert total.item() == pytest.approx(want.sum().item(), rel=1e-5)


def test_leading_dimensions_are_rows(backend) -> None:
    student, teacher = sides()
    flat = linear_kl(*student, *teacher, reduction="none", backend=backend)
    shaped = linear_kl(
        *(student[0].reshape(3, 7, H), student[1], teacher[0].reshape(3, 7, H + 3), teacher[1]),
        **{"reduction": "none", "backend": backend},
    )
    assert shaped.shape == (3, 7)
    assert shaped.reshape(-1).equal(flat)


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_costs_no_product_and_gets_no_gradient(backend, frozen, monkeypatch) -> None:
    student, teacher = sides()
    student[frozen].requires_grad_(False)
    never = {0: "_times_weight", 1: "_add_outer"}[frozen]
    monkeypatch.setattr(chunks, never, lambda *_: pytest.fail("a product for what is frozen"))
    loss = linear_kl(*student, *teacher, backend=backend)
    loss.backward()
    assert student[frozen].grad is None
    assert student[1 - frozen].grad.any()


def test_backward_twice_and_with_any_upstream_gradient_is_the_same(backend) -> None:
    student, teacher = sides()
    loss = linear_kl(*student, *teacher, backend=backend)
    first = torch.autograd.grad(3 * loss, student, retain_graph=True)
    second = torch.autograd.grad(3 * loss, student, retain_graph=True)
    plain = torch.autograd.grad(loss, student)
    for a, b, c in zip(first, second, plain, strict=True):
        assert a.equal(b)
        assert apart(a, 3 * c) < 1e-6


def test_first_and_second_derivatives_are_right() -> None:
    student, teacher = sides(torch.float64, bias=True, classes=3)
    inputs = [x.detach().requires_grad_() for x in (student[0][:3, :2], student[1][:, :2], student[2])]
    labels = torch.tensor([1, -100, 2])

    def loss(hidden, weight, bias):
        heads = {"student_bias": bias, "teacher_bias": teacher[2], "student_softcap": 4.0}
        return linear_kl(hidden, weight, teacher[0][:3], teacher[1], labels=labels, alpha=0.6, temperature=2.0, **heads)

    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_a_tied_embedding_gets_both_gradients(backend) -> None:
    student, teacher = sides()
    weight = student[1]
    tokens = torch.arange(N) % V
    loss = linear_kl(F.embedding(tokens, weight), weight, *teacher, backend=backend)
    want = divergence_rows(F.embedding(tokens, weight).double() @ weight.double().T, logits(*teacher)).mean()
    assert apart(gradients(loss, [weight])[0], gradients(want, [weight])[0]) < 1e-5


def test_under_autocast_operands_are_narrow_and_logits_are_not(backend) -> None:
    student, teacher = sides(gap=1e-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_kl(*student, *teacher, backend=backend)
    halves = [x.detach().bfloat16().requires_grad_() for x in student]
    explicit = linear_kl(*halves, *(x.bfloat16() for x in teacher), backend=backend)
    assert loss.dtype == torch.float32
    assert loss.equal(explicit)
    for found, right in zip(gradients(loss, student), gradients(explicit, halves), strict=True):
        assert found.dtype == torch.float32
        assert found.equal(right.float())


def test_it_compiles_whole() -> None:
    student, teacher = sides()
    labels = labelled()

    def step(hidden, weight):
        return 2 * linear_kl(hidden, weight, *teacher, labels=labels, alpha=0.5, temperature=2.0)

    eager = step(*student)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(*student)
    assert compiled.item() == pytest.approx(eager.item(), rel=1e-6)
    for found, right in zip(gradients(compiled, student), gradients(eager, student), strict=True):
        assert apart(found, right) < 1e-6


def test_the_op_is_well_formed() -> None:
    student, teacher = sides()
    numbers = (1.0, 1.0, 0.0, 0.0, V, 0, 1.0, 0, 0.5, 1.0, 0.0, True, "auto", True, True, False, False)
    rows = (torch.ones(N), None, None)
    plain = [x.detach() for x in student]
    torch.library.opcheck(torch.ops.kdx.linear_kl.default, (*plain, None, *teacher, None, None, None, *rows, *numbers))


def test_the_logits_are_never_held_whole(monkeypatch) -> None:
    rows, classes = 64, 5000
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 3 * 4 * classes * 8)
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(size, H, generator=generator).requires_grad_() for size in (rows, classes))
    largest = 0
    real = torch.Tensor.untyped_storage

    class Watches(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            for each in made if isinstance(made, tuple) else (made,):
                if isinstance(each, torch.Tensor):
                    largest = max(largest, real(each).nbytes())
            return made

    with Watches():
        linear_kl(x, w, x.detach(), w.detach()).backward()
    assert w.grad.shape == w.shape
    assert largest <= max(4 * classes * H, 4 * classes * 8)


def test_it_agrees_with_softmax_kl_on_the_logits(backend) -> None:
    student, teacher = sides()
    z_s = student[0] @ student[1].T
    dense = softmax_kl(z_s, teacher[0] @ teacher[1].T, temperature=2.0, backend=backend)
    assert linear_kl(*student, *teacher, temperature=2.0, backend=backend).item() == pytest.approx(
        dense.item(), rel=1e-5
    )


def terms_in_float64(student, teacher, labels, temperature=1.0, mask_by_labels=True):
    """T^2 KL and cross-entropy, each the mean over its own rows."""
    z_s, z_t, counts = logits(*student), logits(*teacher), labels != -100
    kl = temperature**2 * divergence_rows(z_s, z_t, temperature)
    return (kl[counts] if mask_by_labels else kl).mean(), F.cross_entropy(z_s, labels)


@pytest.mark.parametrize("mask_by_labels", [True, False])
def test_terms_come_apart_with_their_own_rows_and_weights(backend, mask_by_labels) -> None:
    student, teacher = sides()
    labels = labelled()
    options = {"labels": labels, "temperature": 2.0, "mask_by_labels": mask_by_labels, "backend": backend}
    kl, ce = linear_kl(*student, *teacher, **options, return_terms=True, weights=(0.7, torch.tensor(0.3)))
    right = terms_in_float64(student, teacher, labels, 2.0, mask_by_labels)
    assert kl.item() == pytest.approx(0.7 * right[0].item(), rel=2e-6)
    assert ce.item() == pytest.approx(0.3 * right[1].item(), rel=2e-6)
    assert apart_all(gradients(kl + ce, student), gradients(0.7 * right[0] + 0.3 * right[1], student)) < 1e-5


def apart_all(found, want) -> float:
    return max(apart(a, b) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("upstream", [(1.0, 0.0), (0.0, 1.0), (2.0, -0.5), (3.0, 3.0)])
def test_each_term_has_its_own_gradient(backend, upstream) -> None:
    student, teacher = sides(bias=True)
    labels, biases = labelled(), {"student_bias": student[2], "teacher_bias": teacher[2]}
    terms = linear_kl(*student[:2], *teacher[:2], **biases, labels=labels, return_terms=True, backend=backend)
    right = terms_in_float64(student, teacher, labels)
    found, again = (
        torch.autograd.grad(terms, student, list(map(torch.tensor, upstream)), retain_graph=True) for _ in "12"
    )
    want = gradients(sum(u * term for u, term in zip(upstream, right, strict=True)), student)
    assert apart_all(found, want) < 1e-5
    assert all(a.equal(b) for a, b in zip(found, again, strict=True))


def test_terms_with_one_upstream_gradient_take_one_product_of_the_head(monkeypatch) -> None:
    student, teacher = sides()
    runs, real = [], chunks.in_chunks
    backends = import_module("kdx.ops._linear_kl.cpu")
    monkeypatch.setattr(backends, "in_chunks", lambda *a, **k: (runs.append(1), real(*a, **k))[1])
    kl, ce = linear_kl(*student, *teacher, labels=labelled(), return_terms=True, backend="cpu")
    gradients(0.1 * kl + 0.1 * ce, student)
    assert len(runs) == 1
    kl, ce = linear_kl(*student, *teacher, labels=labelled(), return_terms=True, backend="cpu")
    gradients(kl + 0.1 * ce, student)
    assert len(runs) == 3


def test_terms_of_few_classes_and_of_no_row(backend) -> None:
    student, (x_t, w_t) = sides()
    logprobs, ids = F.log_softmax(x_t @ w_t.T, -1).topk(5)
    targets, labels = kdx.ops.SparseTargets(ids, logprobs), labelled()
    options = {"labels": labels, "backend": backend}
    kl, ce = linear_kl(*student, targets, **options, return_terms=True)
    assert kl.item() == pytest.approx(linear_kl(*student, targets, **options).item(), rel=1e-6)
    assert ce.item() == pytest.approx(linear_kl(*student, None, **options, alpha=0.0).item(), rel=1e-6)
    kl, ce = linear_kl(*student, x_t, w_t, labels=torch.full_like(labels, -100), return_terms=True, backend=backend)
    assert kl.item() == ce.item() == 0
    assert not any(each.any() for each in gradients(kl + 2 * ce, student))


def test_terms_are_twice_differentiable_and_compile_whole() -> None:
    student, teacher = sides(torch.float64, classes=3)
    inputs = [x.detach().requires_grad_() for x in (student[0][:3, :2], student[1][:, :2])]
    labels = torch.tensor([1, -100, 2])

    def terms(hidden, weight):
        return linear_kl(hidden, weight, teacher[0][:3], teacher[1], labels=labels, temperature=2.0, return_terms=True)

    assert torch.autograd.gradcheck(terms, inputs)
    assert torch.autograd.gradgradcheck(terms, inputs)

    def step(hidden, weight, share):
        kl, ce = terms(hidden, weight)
        return 2 * kl + share * ce

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for share in (2.0, 0.25):
        eager = step(*inputs, share)
        found = compiled(*inputs, share)
        assert found.item() == pytest.approx(eager.item(), rel=1e-12)
        assert apart_all(gradients(found, inputs), gradients(eager, inputs)) < 1e-12


def test_the_cross_entropy_alone_needs_no_teacher(backend, monkeypatch) -> None:
    student, teacher = sides()
    labels = labelled()
    loss = linear_kl(*student, None, labels=labels, alpha=0.0, backend=backend)
    want = F.cross_entropy(logits(*student), labels)
    assert loss.item() == pytest.approx(want.item(), rel=2e-6)
    assert apart_all(gradients(loss, student), gradients(want, student)) < 1e-5
    with_one = linear_kl(*student, torch.full_like(teacher[0], float("nan")), teacher[1], labels=labels, alpha=0.0)
    assert with_one.item() == pytest.approx(want.item(), rel=2e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"student_weight": torch.zeros(V, H + 1)}, ValueError, r"student_weight: expected \[V, 16\]"),
        ({"teacher": torch.zeros(N - 1, H + 3)}, ValueError, "teacher: expected one row for each"),
        ({"teacher_weight": torch.zeros(V + 4, H + 3)}, ValueError, "has 71 classes, the student 67.*vocabulary="),
        ({"vocabulary": 68}, ValueError, "vocabulary: expected .* 1 to 67"),
        (
            {"teacher_weight": None, "teacher": torch.zeros(N, V), "teacher_scale": 2.0},
            ValueError,
            "teacher_scale: belongs",
        ),
        ({"alpha": 0.5}, ValueError, "labels: are needed"),
        ({"labels": torch.full((N,), V)}, ValueError, r"labels: expected classes in \[0, 67\)"),
        ({"labels": torch.zeros(N)}, TypeError, "labels: expected int64"),
        ({"mask": torch.ones(N)}, TypeError, "mask: expected bool"),
        ({"mask": torch.ones(N + 1, dtype=torch.bool)}, ValueError, "mask: expected one per row"),
        ({"beta": 1.5}, ValueError, "beta: expected"),
        ({"divergence": "forwards"}, ValueError, "divergence: there is no 'forwards'"),
        ({"reduction": "batchmean"}, ValueError, "reduction: there is no"),
        ({"reduction": "sum", "num_items": 3}, ValueError, "num_items: is what the mean divides by"),
        ({"teacher": None, "teacher_weight": None}, ValueError, "teacher: None is for alpha=0"),
        ({"return_terms": True}, ValueError, "labels: are needed .* return_terms"),
        ({"return_terms": True, "labels": LABELS, "alpha": 0.5}, ValueError, "alpha: mixes"),
        ({"return_terms": True, "labels": LABELS, "reduction": "none"}, ValueError, "reduction: terms are"),
        (
            {"return_terms": True, "labels": LABELS, "weights": (1.0, float("nan"))},
            ValueError,
            r"weights\[1\]: expected",
        ),
        ({"num_items": 0}, ValueError, "num_items: expected a number above 0"),
        ({"student_softcap": 0.0}, ValueError, "student_softcap: expected a number above 0"),
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"teacher": torch.zeros(N, H + 3, requires_grad=True)}, ValueError, "teacher: gets no gradient here"),
        ({"student": torch.zeros(N, H, dtype=torch.int64)}, TypeError, "student: expected floating-point"),
    ],
)
def test_bad_input_is_a_sentence(change, error, message) -> None:
    student, teacher = sides()
    given = dict(zip(("student", "student_weight", "teacher", "teacher_weight"), (*student, *teacher), strict=True))
    with pytest.raises(error, match=message):
        linear_kl(**(given | change))
