"""Sorted probabilities of a teacher with another tokenizer (ULD)."""

from __future__ import annotations

import pytest
import torch

import kdx
from kdx.batch import Batch
from kdx.capture import Captured
from kdx.knowledge import ULD
from kdx.knowledge import token_surprisals as chunks
from kdx.knowledge.functional import sorted_distance


def naive(student: torch.Tensor, teacher: torch.Tensor, t_s: float = 1.0, t_t: float = 1.0) -> torch.Tensor:
    """The paper's loss of one pair of rows, in plain PyTorch."""
    p = (student / t_s).softmax(-1).sort(descending=True).values
    q = (teacher / t_t).softmax(-1).sort(descending=True).values
    most = max(len(p), len(q))
    p, q = (torch.cat([x, x.new_zeros(most - len(x))]) for x in (p, q))
    return (p - q).abs().sum()


def drawn(rows: int, classes: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(
        dtype
    )


@pytest.mark.parametrize("classes", [(40, 60), (60, 40), (40, 40)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_the_definition_and_so_is_its_gradient(classes, dtype):
    student, teacher = (drawn(5, size, seed, dtype) for seed, size in enumerate(classes))
    ours, theirs = student.clone().requires_grad_(), student.double().requires_grad_()
    found = sorted_distance(ours, teacher, student_temperature=2.0, teacher_temperature=0.5)
    wanted = torch.stack([naive(theirs[k], teacher[k].double(), 2.0, 0.5) for k in range(5)])
    torch.testing.assert_close(found.double(), wanted, rtol=2e-6, atol=1e-7)
    weights = torch.arange(1.0, 6.0)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert ours.grad.dtype == dtype
    error = 3e-3 if dtype == torch.bfloat16 else 2e-6
    assert (ours.grad.double() - theirs.grad).norm() <= error * theirs.grad.norm()


def test_any_chunks_agree(monkeypatch):
    student, teacher = drawn(9, 12, 0), drawn(9, 20, 1)
    results = []
    for room in (1, 4000, 1 << 26):
        monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", room)
        leaf = student.clone().requires_grad_()
        found = sorted_distance(leaf, teacher)
        found.sum().backward()
        results.append((found.detach(), leaf.grad))
    for found, gradient in results[1:]:
        torch.testing.assert_close(found, results[0][0], rtol=1e-14, atol=0)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-14, atol=1e-17)


def test_second_derivatives():
    student, teacher = drawn(3, 4, 0).requires_grad_(), drawn(3, 6, 1)
    torch.autograd.gradgradcheck(lambda x: sorted_distance(x, teacher), student)


def batch_of(student_labels: list[list[int]], teacher_labels: list[list[int]]) -> Batch:
    alignment = {"teacher_labels": torch.tensor(teacher_labels)}
    return Batch(None, torch.tensor(student_labels), views={"alignment": alignment})


def test_the_kth_learned_token_is_paired_with_the_kth_and_the_longer_answer_is_cut():
    batch = batch_of(
        [[-100, 1, 2, 0], [-100, -100, 1, -100]], [[-100, -100, 4, 3, 0, 1], [2, 1, -100, -100, -100, -100]]
    )
    student, teacher = drawn(8, 5, 0).view(2, 4, 5), drawn(12, 6, 1).view(2, 6, 6)
    student[0, 3] = student[1, [0, 2, 3]] = teacher[0, [0, 4, 5]] = torch.nan  # predict nothing that is learned
    loss = ULD()(Captured({"logits": student}), Captured({"logits": teacher}), batch)
    pairs = [(student[0, 0], teacher[0, 1]), (student[0, 1], teacher[0, 2]), (student[0, 2], teacher[0, 3])]
    # the teacher's first token of row 1 is predicted by none, so that the student's first learned one has no partner
    assert loss.count == 3
    torch.testing.assert_close(loss.value, torch.stack([naive(*pair) for pair in pairs]).mean())


def test_a_token_that_begins_the_texts_of_one_side_shifts_no_pair():
    table = drawn(5, 5, 0)  # the next token follows from the last
    with_beginning, without = torch.tensor([[0, 1, 2, 3, 4]]), torch.tensor([[1, 2, 3, 4]])
    batch = batch_of([[-100, 1, 2, 3, 4]], without.tolist())
    loss = ULD()(Captured({"logits": table[with_beginning]}), Captured({"logits": table[without]}), batch)
    assert (loss.value.item(), loss.count.item()) == (0.0, 3)


def test_one_token_more_on_one_side_shifts_all_pairs_behind_it():
    # "ab" is one token of the student and two of the teacher: the trap that the documentation names
    vocabularies = kdx.datasets.TwoVocabularies([b"", b"a", b"b", b"ab"], [b"", b"a", b"b"])
    tokens = kdx.datasets.Tokens
    batch = vocabularies.batch([(tokens([0, 3, 1, 2], prompt=1), tokens([0, 1, 2, 1, 2], prompt=1))])
    student, teacher = drawn(4, 4, 0).view(1, 4, 4), drawn(5, 3, 1).view(1, 5, 3)
    loss = ULD()(Captured({"logits": student}), Captured({"logits": teacher}), batch)
    by_number = [(student[0, k], teacher[0, k]) for k in range(3)]
    torch.testing.assert_close(loss.value, torch.stack([naive(*pair) for pair in by_number]).mean())


def test_a_batch_in_which_nothing_is_learned_gives_0_with_a_gradient_of_0():
    student = drawn(4, 5, 0).view(1, 4, 5).requires_grad_()
    batch = batch_of([[-100] * 4], [[-100, 1, 2]])
    loss = ULD()(Captured({"logits": student}), Captured({"logits": drawn(3, 6, 1).view(1, 3, 6)}), batch)
    loss.value.backward()
    assert (loss.value.item(), loss.count.item(), student.grad.count_nonzero().item()) == (0.0, 0, 0)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (None, "expected the student's token ids as batch.targets"),
        (Batch(None, None), "got no targets"),
        (Batch(None, torch.zeros(1, 4, dtype=torch.int64)), "got no such view; kdx.datasets.TwoVocabularies"),
        (
            batch_of([[0] * 4], [[0] * 5]),
            r"teacher_labels of the shape of the teacher's places, \[1, 3\] .* got \[1, 5\]",
        ),
        (batch_of([[0] * 4], [[0, 6, 0]]), r"teacher_labels: expected token ids 0 \.\. 5 .* another tokenizer"),
        (batch_of([[0, 5, -100, 0]], [[0] * 3]), r"targets: expected token ids 0 \.\. 4 of the student's outputs"),
        (batch_of([[0, -3, -100, 0]], [[0] * 3]), r"targets: expected token ids 0 \.\. 4"),
    ],
)
def test_a_batch_that_does_not_say_what_is_learned_is_refused(batch, message):
    student, teacher = Captured({"logits": torch.zeros(1, 4, 5)}), Captured({"logits": torch.zeros(1, 3, 6)})
    with pytest.raises(ValueError, match=message):
        ULD()(student, teacher, batch)


def test_temperatures_are_above_0():
    with pytest.raises(ValueError, match="student_temperature must be > 0"):
        ULD(student_temperature=0)
