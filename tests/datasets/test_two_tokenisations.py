"""Rows of texts in the tokens of a student and of a teacher."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import default_collate

from kdx.batch import Batch
from kdx.datasets import Tokens, TwoTokenisations, TwoVocabularies, check_dataset
from kdx.datasets.view import View

LETTERS = TwoVocabularies(
    [b"", b"a", b"b", b"ab", b""], [b"a", b"b", b"ba", b""], same={4: 3}, student_padding=4, teacher_padding=3
)
TEXTS = [
    (Tokens([0, 3, 3, 1, 4], prompt=1), Tokens([0, 2, 1, 0, 3])),  # ab ab a end: a ba b a end
    (Tokens([0, 1, 4], prompt=1), Tokens([0, 3])),
]


def test_a_longer_text_goes_on_in_further_rows_behind_its_prompt():
    rows = TwoTokenisations(TEXTS, LETTERS, lengths=(3, 3))
    assert rows.ids.tolist() == [[0, 3, 3], [0, 1, 4], [0, 1, 4]]
    assert rows.targets.tolist() == [[-100, 3, 3], [-100, 1, 4], [-100, 1, 4]]
    assert rows.teacher_ids.tolist() == [[0, 2, 1], [0, 3, 3], [0, 3, 3]]
    assert rows.alignment["teacher_labels"].tolist() == [[0, 2, 1], [0, 3, -100], [0, 3, -100]]
    assert rows.alignment["student_chunks"].tolist() == [[-1, 0, 0], [-1, 0, 1], [-1, 0, 1]]
    assert rows.alignment["teacher_chunks"].tolist() == [[0, 0, 0], [0, 1, -1], [0, 1, -1]]
    check_dataset(rows)


def test_all_tokens_of_all_texts_are_in_the_rows_whatever_their_length():
    draws = torch.Generator().manual_seed(0)
    texts = []
    for size in (3, 40, 17):
        pieces = torch.randint(1, 4, (size,), generator=draws).tolist()
        text = b"".join(LETTERS.student[piece] for piece in pieces).decode()
        texts.append((Tokens(pieces), Tokens(["ab".index(letter) for letter in text])))
    for lengths in ((4, 5), (7, 6), (50, 90)):
        rows = TwoTokenisations(texts, LETTERS, lengths=lengths)
        assert rows.ids[rows.targets >= 0].tolist() == [token for ours, _ in texts for token in ours.ids]
        labels = rows.alignment["teacher_labels"]
        assert rows.teacher_ids[labels >= 0].tolist() == [token for _, theirs in texts for token in theirs.ids]
        assert rows.ids.shape[1] == lengths[0]
        assert rows.teacher_ids.shape[1] == lengths[1]


def test_without_split_a_longer_text_is_cut():
    rows = TwoTokenisations(TEXTS, LETTERS, lengths=(3, 2), split=False)
    assert rows.ids.tolist() == [[0, 3, 3], [0, 1, 4]]
    assert rows.alignment["student_chunks"].tolist() == [[-1, -1, -1], [-1, 0, 1]]


def test_the_teachers_side_has_its_own_tokens_and_targets():
    student, teacher = (TwoTokenisations(TEXTS, LETTERS, lengths=(5, 6), side=side) for side in ("student", "teacher"))
    assert (student.num_classes, student.input_shape, student.own_targets) == (5, (5,), False)
    assert (teacher.num_classes, teacher.input_shape, teacher.own_targets) == (4, (6,), True)
    assert teacher.token_bytes == [1, 1, 2, 0]
    assert student.token_bytes == [0, 1, 1, 2, 0]
    assert teacher.ids.equal(student.teacher_ids)
    assert teacher.targets.equal(student.alignment["teacher_labels"])
    check_dataset(teacher)


def test_rows_go_into_batches_with_their_views():
    rows = View(TwoTokenisations(TEXTS, LETTERS, lengths=(5, 6)))
    batch: Batch = default_collate([rows[0], rows[1]])
    assert batch.inputs.shape == batch.targets.shape == batch.views["alignment"]["student_chunks"].shape == (2, 5)
    assert batch.views["teacher"].shape == batch.views["alignment"]["teacher_chunks"].shape == (2, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": (1, 3)}, "room behind the prompts of 1 and 0 tokens, got rows of 1 and 3"),
        ({"lengths": (3, 3), "side": "both"}, "side must be 'student' or 'teacher'"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TwoTokenisations(TEXTS, LETTERS, **options)
