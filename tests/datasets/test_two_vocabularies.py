"""Two tokenisations of one text: chunks by byte offsets, prompts, special tokens, padding, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from kdx.datasets import Tokens, TwoVocabularies, align

VERSE = "Shall I compare thee to a summer's day? Thou art more lovely and more temperate: rough winds do shake. " * 4
CODE = 'for (i = 0; i < 10; i++) {\n\t\tprintf("%d\\n", values[i]);  // naïve\n}\n' * 6
TEXTS = [
    VERSE[:80],
    CODE[:60],
    "  two  spaces\n\n\nlines\t",
    "naïve café 東京 🙂🙃 e\u0301",
    "a",
    "1234567890 thee;thou",
]


def byte_level(corpus: str, size: int) -> Tokenizer:
    """A byte-level BPE trained on a text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([corpus], trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet))
    return made


def pieces_of(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of each token: a byte-level BPE writes each as one letter, those of printable ASCII as themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in printable}
    letters |= {chr(256 + k): byte for k, byte in enumerate(b for b in range(256) if b not in printable)}
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [bytes(letters[letter] for letter in token) for token, _ in vocabulary]


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Tokenizer, Tokenizer]:
    return byte_level(VERSE, 320), byte_level(CODE + VERSE[:40], 300)


@pytest.mark.parametrize("text", TEXTS)
def test_chunks_of_real_byte_level_tokenizers_spell_the_same_bytes_and_are_the_shortest(tokenizers, text):
    ids = [tokenizer.encode(text).ids for tokenizer in tokenizers]
    pieces = [[pieces_of(tokenizer)[k] for k in each] for tokenizer, each in zip(tokenizers, ids, strict=True)]
    assert b"".join(pieces[0]) == b"".join(pieces[1]) == text.encode()
    chunks = [each.tolist() for each in align(*pieces)]
    spelt = [
        [b"".join(p for p, c in zip(side, numbers, strict=True) if c == k) for k in range(max(numbers) + 1)]
        for side, numbers in zip(pieces, chunks, strict=True)
    ]
    assert spelt[0] == spelt[1]
    assert b"".join(spelt[0]) == text.encode()
    ends = [{sum(map(len, side[: k + 1])) for k in range(len(side))} for side in pieces]  # byte offsets, one by one
    assert len(spelt[0]) == len(ends[0] & ends[1])
    assert all(numbers == sorted(numbers) and -1 not in numbers for numbers in chunks)


def test_a_multi_byte_letter_that_both_cut_alike_is_cut_there():
    tokens = [b"\xf0\x9f", b"\x99\x82"]
    assert [each.tolist() for each in align(tokens, tokens)] == [[0, 1], [0, 1]]
    assert [each.tolist() for each in align(tokens, [b"\xf0\x9f\x99", b"\x82"])] == [[0, 0], [0, 0]]


def test_an_empty_answer_has_no_chunk():
    assert [each.tolist() for each in align([], [])] == [[], []]
    assert [each.tolist() for each in align([b""], [])] == [[-1], []]


def test_texts_that_differ_are_refused_and_shown():
    with pytest.raises(ValueError, match=re.escape("differ from byte 4 on: b'the Cat' of the student's tokens")):
        align([b"the", b" Cat"], [b"the", b" cat"])
    with pytest.raises(ValueError, match="cut=True"):
        align([b"the"], [b"the", b" cat"])


def test_a_text_that_is_cut_on_one_side_is_aligned_up_to_the_last_common_end():
    student, teacher = align([b"the", b" c"], [b"the", b" cat", b"s"], cut=True)
    assert student.tolist() == [0, -1]
    assert teacher.tolist() == [0, -1, -1]


VOCABULARIES = TwoVocabularies(
    [b"", b"", b"un", b"done", b"?", b"Q:"], [b"", b"undone", b"", b"?", b" Q"], same={1: 2}, teacher_padding=3
)


def test_a_batch_has_both_tokenisations_their_labels_and_chunks():
    rows = [
        (Tokens([0, 5, 2, 3, 1], prompt=2), Tokens([4, 1, 2], prompt=1)),
        (Tokens([4]), Tokens([3])),
    ]
    batch = VOCABULARIES.batch(rows, index=torch.tensor([7, 3]))
    assert batch.inputs["input_ids"].tolist() == [[0, 5, 2, 3, 1], [4, 0, 0, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert batch.targets.tolist() == [[-100, -100, 2, 3, 1], [4, -100, -100, -100, -100]]
    assert batch.index.tolist() == [7, 3]
    assert batch.views["teacher"]["input_ids"].tolist() == [[4, 1, 2], [3, 3, 3]]
    assert batch.views["teacher"]["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.views["teacher"].keys() == {"input_ids", "attention_mask"}
    alignment = {name: values.tolist() for name, values in batch.views["alignment"].items()}
    assert alignment == {
        "teacher_labels": [[-100, 1, 2], [3, -100, -100]],
        "student_chunks": [[-1, -1, 0, 0, 1], [0, -1, -1, -1, -1]],
        "teacher_chunks": [[-1, 0, 1], [0, -1, -1]],
    }


def test_special_tokens_of_one_side_are_in_no_chunk_and_do_not_part_what_is_around_them():
    student, teacher = VOCABULARIES.align(Tokens([0, 2, 0, 3, 4]), Tokens([1, 3]))
    assert student.tolist() == [-1, 0, -1, 0, 1]
    assert teacher.tolist() == [0, 1]


def test_an_end_on_one_side_alone_is_refused():
    with pytest.raises(ValueError, match="differ from byte 6 on"):
        VOCABULARIES.align(Tokens([2, 3, 1]), Tokens([1]))


def test_rows_that_are_cut_to_a_length_keep_what_both_have():
    batch = VOCABULARIES.batch([(Tokens([2, 3, 4, 4, 4]), Tokens([1, 3, 3, 3]))], lengths=(3, 4))
    assert batch.views["alignment"]["student_chunks"].tolist() == [[0, 0, 1]]
    assert batch.views["alignment"]["teacher_chunks"].tolist() == [[0, 1, -1, -1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TwoVocabularies([b""], [b""], same={1: 0}), "the student's vocabulary has tokens 0 .. 0, got 1"),
        (lambda: TwoVocabularies([b"", b""], [b""], same={0: 0, 1: 0}), "one token of the teacher for each"),
        (lambda: VOCABULARIES.batch([]), "expected a text at least"),
        (lambda: VOCABULARIES.align(Tokens([4]), Tokens([9])), "0 .. 4 of the teacher's vocabulary, got 9"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
