"""linear_kl between two vocabularies with classes in common, and the numbers it gives to log."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from kdx.ops import linear_kl
from tests.ops.test_linear_kl import apart, divergence_rows, gradients, labelled, logits, sides

OP = "linear_kl"
N, H, V, V_T = 21, 16, 67, 71
chunks = import_module("kdx.ops._linear_kl.chunks")


def vocabularies(gap: float | None = None, common: int = 40):
    """The student, a teacher with another order and number of classes, and the common classes of both."""
    student, (x_t, w_t) = sides(gap=gap)
    generator = torch.Generator().manual_seed(5)
    s_ids, t_ids = (torch.randperm(n, generator=generator)[:common] for n in (V, V_T))
    others = torch.randn(V_T, w_t.shape[1], generator=generator)
    w_t = others.index_copy(0, t_ids, w_t[s_ids])
    return student, [x_t, w_t], (s_ids, t_ids)


def bucketed(z: torch.Tensor, ids: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits of the common classes and of all others together."""
    z = z / temperature
    others = z.index_fill(1, ids, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([z[:, ids], others], 1)


@pytest.mark.parametrize("small_chunks", [False, True], ids=["one chunk", "chunks"])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 2.0, "divergence": "reverse"}, {"divergence": "jsd"}, {"alpha": 0.4}]
)
def test_common_classes_one_by_one_and_the_rest_of_each_side_as_one(
    backend, options, small_chunks, monkeypatch
) -> None:
    if small_chunks:
        monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 6 * 4 * (V + V_T) * 6)
    student, teacher, ids = vocabularies()
    labels, T = labelled(), options.get("temperature", 1.0)
    loss = linear_kl(*student, *teacher, vocabulary=ids, labels=labels, student_softcap=9.0, **options, backend=backend)
    z_s, counts = logits(*student, softcap=9.0), labels != -100
    rows = divergence_rows(
        *(bucketed(z, of_side, T) for z, of_side in zip((z_s, logits(*teacher)), ids, strict=True)),
        divergence=options.get("divergence", "forward"),
    )
    alpha = options.get("alpha", 1.0)
    want = alpha * T**2 * rows[counts].mean() + (1 - alpha) * F.cross_entropy(z_s, labels)
    assert loss.item() == pytest.approx(want.item(), rel=3e-6)
    for found, right in zip(gradients(loss, student), gradients(want, student), strict=True):
        assert apart(found, right) < 1e-5


def test_an_order_alone_changes_nothing(backend) -> None:
    student, (x_t, w_t) = sides()
    order = torch.randperm(V, generator=torch.Generator().manual_seed(1))
    shuffled = torch.empty_like(w_t).index_copy_(0, order, w_t)
    loss = linear_kl(*student, x_t, shuffled, vocabulary=(torch.arange(V), order), backend=backend)
    plain = linear_kl(*student, x_t, w_t, backend=backend)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    for found, right in zip(gradients(loss, student), gradients(plain, student), strict=True):
        assert apart(found, right) < 1e-6


def test_the_student_that_agrees_has_no_gradient_where_one_side_has_all_its_classes_in_common(backend) -> None:
    student, (x_t, w_t) = sides(gap=0.0)
    more = torch.cat([torch.full((4, H), -50.0), w_t])  # further classes of the teacher, next to no probability
    x = x_t.abs()
    student[0].data.copy_(x)
    ids = torch.arange(V), torch.arange(4, 4 + V)
    loss = linear_kl(*student, x, more, vocabulary=ids, divergence="jsd", backend=backend)
    assert 0 <= loss.item() < 1e-7
    assert all(found.abs().max() < 1e-6 for found in gradients(loss, student))


def test_terms_second_derivatives_and_a_whole_graph() -> None:
    student, teacher, ids = vocabularies()
    labels = labelled()
    kl, ce = linear_kl(*student, *teacher, vocabulary=ids, labels=labels, return_terms=True)
    assert kl.item() == pytest.approx(linear_kl(*student, *teacher, vocabulary=ids, labels=labels).item(), rel=1e-6)
    assert ce.item() == pytest.approx(F.cross_entropy(logits(*student), labels).item(), rel=1e-6)

    def loss(hidden, weight):
        return linear_kl(hidden, weight, *teacher, vocabulary=ids, labels=labels, alpha=0.5)

    eager, compiled = loss(*student), torch.compile(loss, fullgraph=True, backend="aot_eager")(*student)
    for found, right in zip(gradients(compiled, student), gradients(eager, student), strict=True):
        assert apart(found, right) < 1e-6
    few = [x.detach().double()[:3, :2].requires_grad_() for x in student]
    x_t, w_t = torch.randn(3, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    pair = torch.tensor([0, 2]), torch.tensor([3, 1])

    def small(hidden, weight):
        return linear_kl(hidden, weight, x_t, w_t, vocabulary=pair, divergence="reverse")

    assert torch.autograd.gradcheck(small, few)
    assert torch.autograd.gradgradcheck(small, few)


@pytest.mark.parametrize(
    ("pair", "options", "error", "message"),
    [
        (([0], [0]), {}, TypeError, r"vocabulary\[0\]: expected int64 classes of the student, got list"),
        ((torch.arange(3), torch.arange(4)), {}, ValueError, r"two lists of the same length.* \[\[3\], \[4\]\]"),
        ((torch.arange(3), torch.tensor([0, 1, V_T])), {}, ValueError, r"vocabulary\[1\]: .* 0 to 70, got 0 to 71"),
        (
            (torch.tensor([0, 0]), torch.arange(2)),
            {},
            ValueError,
            r"vocabulary\[0\]: lists a class of the student twice",
        ),
        ((torch.arange(V), torch.arange(V)), {}, ValueError, "all 67 classes of the student are common.*infinite"),
    ],
)
def test_lists_that_do_not_fit_are_sentences(pair, options, error, message) -> None:
    student, teacher, _ = vocabularies()
    with pytest.raises(error, match=message):
        linear_kl(*student, *teacher, vocabulary=pair, **options)


def test_stats_are_what_a_user_logs(backend) -> None:
    student, teacher = sides()
    labels, mask = labelled(), torch.arange(N) % 5 != 0
    z_s, z_t = logits(*student), logits(*teacher)
    options = {"labels": labels, "mask": mask, "temperature": 2.0, "backend": backend}
    counts = mask & (labels != -100)
    kl, ce = divergence_rows(z_s, z_t, 2.0), F.cross_entropy(z_s[counts], labels[counts])
    plain = linear_kl(*student, *teacher, **options, alpha=0.3, mask_by_labels=False, num_items=7)
    loss, stats = linear_kl(
        *student, *teacher, **options, alpha=0.3, mask_by_labels=False, num_items=7, return_stats=True
    )
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    for found, right in zip(gradients(loss, student), gradients(plain, student), strict=True):
        assert apart(found, right) < 1e-6
    assert stats.divergence.item() == pytest.approx(kl[mask].mean().item(), rel=2e-6)
    assert stats.cross_entropy.item() == pytest.approx(ce.item(), rel=2e-6)
    assert (int(stats.rows), int(stats.labelled)) == (int(mask.sum()), int(counts.sum()))
    assert not any(x.requires_grad for x in stats)
    kl_term, ce_term, again = linear_kl(
        *student, *teacher, **options, return_terms=True, return_stats=True, weights=(0.5, 0.0)
    )
    assert kl_term.item() == pytest.approx(0.5 * 4 * again.divergence.item(), rel=1e-6)
    assert (ce_term.item(), int(again.labelled), again.cross_entropy.item()) == (0.0, 0, 0.0)


def test_stats_of_one_term_and_of_no_row(backend) -> None:
    student, teacher = sides()
    loss, stats = linear_kl(*student, *teacher, return_stats=True, backend=backend)
    assert (stats.divergence.item(), stats.cross_entropy) == (pytest.approx(loss.item()), None)
    _, stats = linear_kl(*student, None, labels=labelled(), alpha=0.0, return_stats=True, backend=backend)
    assert (stats.divergence, int(stats.rows), int(stats.labelled)) == (None, 0, int((labelled() != -100).sum()))
    nothing = torch.zeros(N, dtype=torch.bool)
    _, stats = linear_kl(*student, *teacher, mask=nothing, return_stats=True, backend=backend)
    assert (stats.divergence.item(), int(stats.rows)) == (0.0, 0)
    with pytest.raises(ValueError, match="return_stats: is of a sum or a mean"):
        linear_kl(*student, *teacher, reduction="none", return_stats=True)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_callers_logits_are_left_as_they_are(reduction: str) -> None:
    (x, w), _, ids = vocabularies()
    given = torch.randn(N, V_T, generator=torch.Generator().manual_seed(0))
    kept = given.clone()
    x = x.detach().requires_grad_()
    linear_kl(x, w, given, vocabulary=ids, reduction=reduction).sum().backward()
    assert torch.equal(given, kept)


def test_no_row_counts_though_the_number_of_items_is_0() -> None:
    (x, w), *_ = vocabularies()
    x = x.detach().requires_grad_()
    none = torch.zeros(N, dtype=torch.bool)
    loss = linear_kl(x, w, x.detach(), w.detach(), mask=none, num_items=torch.tensor(0.0))
    loss.backward()
    assert (loss.item(), x.grad.count_nonzero().item()) == (0.0, 0)
