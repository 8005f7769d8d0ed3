"""Likelihoods of chunks of text, whatever tokens spell them (approximate likelihood matching)."""

from __future__ import annotations

import math

import pytest
import torch

import kdx
from kdx.batch import Batch
from kdx.capture import Captured
from kdx.datasets import Tokens, TwoVocabularies
from kdx.knowledge import ALM, ULD
from kdx.knowledge.functional import binary_divergence

ADDED = 1e-4
VOCABULARIES = TwoVocabularies([b"", b"a", b"b", b"ab", b"c"], [b"a", b"b", b"c", b"ca", b""], same={0: 4})
ROWS = [
    (Tokens([0, 1, 3, 4, 3, 0], prompt=2), Tokens([2, 0, 1, 3, 1, 4], prompt=1)),  # ab c ab end: ab|cab|end
    (Tokens([1, 4, 3], prompt=1), Tokens([3, 0, 1])),  # prompts differ: c ab and ca ab do not
]
ROWS[1] = (Tokens([1, 4, 3], prompt=1), Tokens([1, 2, 0, 1], prompt=1))  # c ab: c|ab


def naive_divergence(p: float, q: float, tau: float) -> float:
    """tau KL of yes or no, of likelihoods with the ten-thousandth of a nat added."""
    p, q = ((x * math.exp(-ADDED)) ** (1 / tau) for x in (p, q))
    return tau * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))


def drawn(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    sides = ((batch.inputs["input_ids"], 5), (batch.views["teacher"]["input_ids"], 5))
    return tuple(3 * torch.randn(*ids.shape, n, generator=draws, dtype=torch.float64) for ids, n in sides)


def sides(student: torch.Tensor, teacher: torch.Tensor) -> tuple[Captured, Captured]:
    return Captured({"logits": student}), Captured({"logits": teacher})


@pytest.mark.parametrize("tau", [1.0, 100.0])
def test_it_is_the_definition_chunk_by_chunk(tau):
    batch = VOCABULARIES.batch(ROWS)
    student, teacher = drawn(batch)
    loss = ALM(tau)(*sides(student, teacher), batch)

    def likelihood(logits, row, places):  # of the tokens at these places, each predicted one place before
        ids = batch.inputs if logits is student else batch.views["teacher"]
        probabilities = logits.softmax(-1)
        return math.prod(probabilities[row, k - 1, ids["input_ids"][row, k]].item() for k in places)

    chunks = [  # row, places of the student's tokens, of the teacher's
        (0, [2], [1, 2]),
        (0, [3, 4], [3, 4]),
        (0, [5], [5]),
        (1, [1], [1]),
        (1, [2], [2, 3]),
    ]
    each = [
        naive_divergence(likelihood(teacher, row, theirs), likelihood(student, row, ours), tau)
        for row, ours, theirs in chunks
    ]
    assert loss.count == len(chunks)
    torch.testing.assert_close(loss.value.item(), sum(each) / len(each), rtol=1e-10, atol=0)


def test_prompts_padding_and_places_that_predict_no_chunk_are_not_read():
    batch = VOCABULARIES.batch(ROWS)
    student, teacher = drawn(batch)
    expected = ALM()(*sides(student, teacher), batch)
    student[0, [0, 5]] = student[1, 2:] = torch.nan
    teacher[0, [5]] = teacher[1, 3:] = torch.nan
    leaf = student.requires_grad_()
    found = ALM()(*sides(leaf, teacher), batch)
    assert torch.equal(found.value.detach(), expected.value)
    found.value.backward()
    assert leaf.grad.isfinite().all()
    assert leaf.grad[:, -1].count_nonzero() == 0


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_chunk_of_which_a_token_is_not_learned_or_not_predicted_teaches_nothing(side):
    rows = [(Tokens([3, 4]), Tokens([0, 1, 2]))]  # ab|c, whose first tokens nothing predicts
    batch = VOCABULARIES.batch(rows)
    student, teacher = drawn(batch)
    assert ALM()(*sides(student, teacher), batch).count == 1
    hidden = batch.targets.clone(), batch.views["alignment"]["teacher_labels"].clone()
    hidden[side == "teacher"][0, -1] = -100
    views = batch.views | {"alignment": batch.views["alignment"] | {"teacher_labels": hidden[1]}}
    leaf = student.requires_grad_()
    loss = ALM()(*sides(leaf, teacher), batch._replace(targets=hidden[0], views=views))
    loss.value.backward()
    assert (loss.value.item(), loss.count.item(), leaf.grad.count_nonzero().item()) == (0.0, 0, 0)


def test_models_that_agree_on_one_tokenisation_teach_nothing():
    vocabularies = TwoVocabularies([b"a", b"b"], [b"a", b"b"])
    batch = vocabularies.batch([(Tokens([0, 1, 1, 0]), Tokens([0, 1, 1, 0]))])
    logits = torch.randn(1, 4, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = ALM()(*sides(logits, logits.detach().clone()), batch)
    loss.value.backward()
    assert loss.value.item() == 0
    assert logits.grad.count_nonzero() == 0
    assert loss.count == 3


@pytest.mark.parametrize("tau", [1.0, 10.0, 100.0])
def test_the_divergence_in_float32_is_that_of_float64_far_and_near(tau):
    a = torch.tensor([1e-6, 1e-3, 0.1, 1.0, 5.0, 30.0, 70.0])
    for share in (3.0, 1.1, 1.001):
        for teacher, student in ((a, share * a), (share * a, a)):
            found = binary_divergence(student, teacher, tau)
            wanted = binary_divergence(student.double(), teacher.double(), tau)
            torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=1e-12)
            exact = [
                naive_divergence(math.exp(-p), math.exp(-q), tau)
                for p, q in zip(teacher.tolist(), student.tolist(), strict=True)
                if p > 1e-2 and share > 1.01 and q / tau < 30
            ]
            kept = torch.tensor(
                [p > 1e-2 and share > 1.01 and q / tau < 30 for p, q in zip(teacher, student, strict=True)]
            )
            torch.testing.assert_close(wanted[kept], torch.tensor(exact, dtype=torch.float64), rtol=1e-9, atol=0)


def test_the_divergence_is_never_negative_and_finite_at_the_ends():
    ends = torch.tensor([0.0, 1e-30, 1e-8, 1.0, 100.0, 1e6, torch.inf])
    student, teacher = (side.flatten() for side in torch.meshgrid(ends, ends, indexing="ij"))
    for tau in (0.5, 100.0, None):
        leaf = student.clone().requires_grad_()
        found = binary_divergence(leaf, teacher, tau)
        found.sum().backward()
        assert (found >= 0).all()
        assert found.isfinite().all()
        assert leaf.grad.isfinite().all()
        assert (found[student == teacher] < 1e-30).all()  # 0, but for what is beyond the largest surprisal


def test_for_large_temperatures_it_tends_to_that_without_end():
    student, teacher = torch.tensor([0.3, 2.0, 9.0]).double(), torch.tensor([1.0, 2.5, 4.0]).double()
    a, b = teacher + ADDED, student + ADDED
    torch.testing.assert_close(binary_divergence(student, teacher, None), a * (a / b).log() + b - a, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        binary_divergence(student, teacher, 1e6), binary_divergence(student, teacher, None), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("tau", [1.0, 100.0, None])
def test_derivatives_of_the_divergence(tau):
    student = torch.tensor([0.5, 1.0, 1.0001, 3.0, 20.0], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([1.0, 1.0, 1.0, 0.01, 25.0], dtype=torch.float64)
    torch.autograd.gradcheck(lambda x: binary_divergence(x, teacher, tau), student)
    torch.autograd.gradgradcheck(lambda x: binary_divergence(x, teacher, tau), student)


def test_micro_batches_add_up_to_the_chunks_of_the_whole():
    batch = VOCABULARIES.batch(ROWS)
    student, teacher = drawn(batch)
    whole = ALM()(*sides(student, teacher), batch)
    parts = [ALM()(*sides(student[k : k + 1], teacher[k : k + 1]), batch.at(slice(k, k + 1))) for k in range(2)]
    assert [part.count.item() for part in parts] == [3, 2]
    torch.testing.assert_close((3 * parts[0].value + 2 * parts[1].value) / 5, whole.value)


def test_half_precision_logits_lose_nothing_but_their_own_rounding():
    batch = VOCABULARIES.batch(ROWS)
    student, teacher = (logits.bfloat16() for logits in drawn(batch))
    leaves = student.clone().requires_grad_(), student.double().requires_grad_()
    losses = [ALM()(*sides(leaf, teacher.to(leaf.dtype)), batch).value for leaf in leaves]
    torch.testing.assert_close(losses[0].double(), losses[1], rtol=2e-6, atol=0)
    for loss in losses:
        loss.backward()
    error = (leaves[0].grad.double() - leaves[1].grad).norm() / leaves[1].grad.norm()
    assert error <= 3e-3


@pytest.mark.parametrize(
    ("alignment", "message"),
    [
        ({}, "one without 'teacher_labels'"),
        ({"teacher_labels": torch.zeros(1, 3, dtype=torch.int64)}, "one without 'student_chunks'"),
    ],
)
def test_a_batch_without_chunks_is_refused(alignment, message):
    batch = Batch(None, torch.zeros(1, 4, dtype=torch.int64), views={"alignment": alignment})
    with pytest.raises(ValueError, match=message):
        ALM()(*sides(torch.zeros(1, 4, 5), torch.zeros(1, 3, 5)), batch)


def test_the_view_may_have_another_name_and_targets_may_be_shifted_by_the_data():
    batch = VOCABULARIES.batch(ROWS)
    student, teacher = drawn(batch)
    expected = ALM()(*sides(student, teacher), batch).value
    moved = {
        name: torch.cat([values[:, 1:], torch.full_like(values[:, :1], -1 if "chunks" in name else -100)], 1)
        for name, values in {"targets": batch.targets, **batch.views["alignment"]}.items()
    }
    shifted = Batch(None, moved.pop("targets"), views={"lies": moved})
    torch.testing.assert_close(ALM(alignment="lies", shift=False)(*sides(student, teacher), shifted).value, expected)
    told = ALM(alignment="lies")
    told.bind(kdx.make("task", "causal-lm", shift=False).responses)
    torch.testing.assert_close(told(*sides(student, teacher), shifted).value, expected)


def test_temperature_is_above_0():
    with pytest.raises(ValueError, match="temperature must be > 0"):
        ALM(0.0)


def test_hidden_states_and_a_head_on_either_side_give_the_loss_and_the_gradients_of_their_logits():
    batch = VOCABULARIES.batch(ROWS)
    draws = torch.Generator().manual_seed(0)
    sizes = [(*batch.inputs["input_ids"].shape, 3), (5, 3), (*batch.views["teacher"]["input_ids"].shape, 4), (5, 4)]
    h_s, w_s, h_t, w_t = (torch.randn(*size, generator=draws, dtype=torch.float64) for size in sizes)
    found = []
    for held in (True, False):
        leaves = h_s.clone().requires_grad_(), w_s.clone().requires_grad_()
        student, teacher = kdx.LinearLogits(*leaves, softcap=4.0), kdx.LinearLogits(h_t, w_t, scale=0.5)
        if held:
            captured = (Captured({}, held={"logits": side}) for side in (student, teacher))
        else:
            captured = sides(student.dense(), teacher.dense())
        loss = ALM()(*captured, batch)
        found.append((loss.value, *torch.autograd.grad(loss.value, leaves)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert ALM.takes_held


class Table(torch.nn.Module):
    """A bigram model: logits of a token from the token before."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(seed)
        self.rows = torch.nn.Parameter(torch.randn(5, 5, generator=draws))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.rows[ids]


@pytest.mark.parametrize("component", [ALM, ULD])
def test_what_is_counted_is_known_before_any_model_runs_so_that_no_graph_waits(component):
    whole = VOCABULARIES.batch(ROWS)
    views = whole.views | {"teacher": whole.views["teacher"]["input_ids"]}
    whole = whole._replace(inputs=whole.inputs["input_ids"], views=views)
    parts = [whole.at(slice(k, k + 1)) for k in range(2)]
    ends = []
    for batches, accumulate in ((parts, 2), ([whole], 1)):
        student = Table(0)
        teacher = kdx.teachers.Frozen(Table(1), view="teacher")
        scheme = kdx.Offline(student, teacher, task=None, knowledge={"kd": (3.0, component())})
        losses = scheme(batches[0])
        assert losses.over["kd"] in scheme.counted
        assert scheme.count(losses.over["kd"], batches[0]) == losses.counts["kd"]
        options = {"optimizer": kdx.Ref("SGD", lr=0.5), "device": "cpu", "progress": False}
        kdx.fit(scheme, batches, accumulate=accumulate, **options)
        ends.append(student.rows.detach())
    torch.testing.assert_close(*ends)
    assert not ends[0].equal(Table(0).rows)


@pytest.mark.parametrize("component", [ALM, ULD])
def test_one_of_several_teachers_may_have_another_tokenizer(component):
    batch = VOCABULARIES.batch(ROWS)
    views = batch.views | {"teacher": batch.views["teacher"]["input_ids"]}
    batch = batch._replace(inputs=batch.inputs["input_ids"], views=views)
    other = kdx.teachers.Frozen(Table(1), view="teacher")
    knowledge = {"kd": kdx.SoftTargets(1.0, teacher="same/logits"), "own": component(teacher="other/logits")}
    scheme = kdx.schemes.MultiTeacher(
        Table(0), {"same": Table(2), "other": other}, task=kdx.make("task", "causal-lm"), knowledge=knowledge
    )
    found = scheme(batch)
    alone = kdx.Offline(Table(0), other, task=None, knowledge={"own": component()})(batch)
    assert found.terms.keys() == {"task", "kd", "own"}
    torch.testing.assert_close(found.terms["own"], alone.terms["own"])
