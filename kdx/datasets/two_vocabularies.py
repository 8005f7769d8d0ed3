"""Batches for a student and a teacher with different tokenizers: both tokenisations of each text, aligned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from kdx.batch import IGNORE, Batch

__all__ = ["Tokens", "TwoVocabularies", "align"]

BETWEEN = b"\xff"
"""A byte that is in no UTF-8 text: it stands around what is no text, as the end that both vocabularies have."""


class Tokens(NamedTuple):
    """One text in the tokens of one vocabulary.

    Args:
        ids: token ids, ``[T]``.
        prompt: number of tokens at the beginning that are given and not learned, as a question or a marker of the
            beginning. What follows is the answer, the same text in both vocabularies.
    """

    ids: Sequence[int]
    prompt: int = 0


def align(student: Sequence[bytes], teacher: Sequence[bytes], *, cut: bool = False) -> tuple[Tensor, Tensor]:
    """Numbers the chunks of a text that two tokenisations of it have in common.

    A chunk lasts from one byte at which a token ends on both sides to the next, so that its tokens spell the same bytes
    on both; there is no shorter one.

    Args:
        student: the bytes that each token of the student stands for, none (``b""``) of one without a text.
        teacher: the same of the teacher.
        cut: whether one side may end before the other; tokens behind the last common end are then in no chunk.

    Returns:
        The number of the chunk of each token of the student, int64 ``[S]``, and of the teacher ``[T]``, from 0; -1 for
        tokens in none.

    Raises:
        ValueError: they spell different texts; the message shows where.

    Example:
        >>> student, teacher = align([b"un", b"align", b"ed", b" text"], [b"una", b"ligned", b" ", b"text"])
        >>> student.tolist(), teacher.tolist()
        ([0, 0, 0, 1], [0, 0, 1, 1])
    """
    ours, theirs = b"".join(student), b"".join(teacher)
    shared = min(len(ours), len(theirs))
    if ours[:shared] != theirs[:shared] or (len(ours) != len(theirs) and not cut):
        at = next((k for k in range(shared) if ours[k] != theirs[k]), shared)
        near = slice(max(0, at - 12), at + 12)
        raise ValueError(
            f"expected two tokenisations of one text, got texts that differ from byte {at} on: {ours[near]!r} of the "
            f"student's tokens and {theirs[near]!r} of the teacher's. Tokenise the same answer for both and count "
            "what differs, as a template, among the prompt; a tokenizer that changes the text (lower case, "
            "normalised letters) cannot be aligned. Of texts that were cut to a length say cut=True"
        )
    ends = torch.tensor(list(accumulate(map(len, student))), dtype=torch.int64)
    others = torch.tensor(list(accumulate(map(len, teacher))), dtype=torch.int64)
    common = torch.unique(ends[torch.isin(ends, others) & (ends > 0)])
    return _numbered(ends, common, student), _numbered(others, common, teacher)


def _numbered(ends: Tensor, common: Tensor, pieces: Sequence[bytes]) -> Tensor:
    """The chunk of each token whose text ends at ``ends``: that of the first common end which is not before it."""
    chunks = torch.searchsorted(common, ends)
    empty = torch.tensor([not piece for piece in pieces], dtype=torch.bool)
    return chunks.masked_fill((chunks == len(common)) | empty, -1)


class TwoVocabularies:
    """The vocabularies of a student and of a teacher; puts texts in both tokenisations together to batches.

    Such a batch gives the student its tokens as ``inputs`` and its labels as ``targets``, the teacher its own tokens as
    the view ``teacher`` (:class:`kdx.teachers.Frozen` with ``view="teacher"``), and the components ``uld`` and ``alm``
    the view ``alignment``, a mapping:

    - ``teacher_labels``, int64 ``[N, T]``: the teacher's token ids, ``-100`` in prompts and padding;
    - ``student_chunks`` ``[N, S]`` and ``teacher_chunks`` ``[N, T]``: the number of the chunk of each token as
      :func:`align` counts them within a row, -1 of tokens in none: prompts, padding and special tokens.

    Args:
        student: the bytes that each token of the student's vocabulary stands for, by token id; none (``b""``) for one
            without a text. Of a byte-level BPE they are the bytes of the token, a leading space included.
        teacher: the same of the teacher.
        same: student's id -> teacher's id of special tokens that mean the same, as the end of a text. They are a chunk
            of their own; all other tokens without a text are in none.
        student_padding: the id that fills up the student's rows.
        teacher_padding: the same for the teacher.

    Raises:
        ValueError: ``same`` names an id that a vocabulary does not have, or twice.

    Example:
        >>> vocabularies = TwoVocabularies([b"", b"a", b"b", b"ab"], [b"a", b"b"])
        >>> batch = vocabularies.batch([(Tokens([3, 1]), Tokens([0, 1, 0]))])
        >>> batch.inputs["input_ids"].tolist(), batch.views["teacher"]["input_ids"].tolist()
        ([[3, 1]], [[0, 1, 0]])
        >>> batch.views["alignment"]["student_chunks"].tolist(), batch.views["alignment"]["teacher_chunks"].tolist()
        ([[0, 1]], [[0, 0, 1]])
    """

    def __init__(
        self,
        student: Sequence[bytes],
        teacher: Sequence[bytes],
        *,
        same: Mapping[int, int] | None = None,
        student_padding: int = 0,
        teacher_padding: int = 0,
    ) -> None:
        self.student, self.teacher = list(student), list(teacher)
        self.student_padding, self.teacher_padding = student_padding, teacher_padding
        pairs = dict(same or {})
        if len(set(pairs.values())) != len(pairs):
            raise ValueError(f"same: expected one token of the teacher for each of the student, got {pairs}")
        for number, (ours, theirs) in enumerate(pairs.items()):
            for side, pieces, token in (("student", self.student, ours), ("teacher", self.teacher, theirs)):
                if not 0 <= token < len(pieces):
                    raise ValueError(f"same: the {side}'s vocabulary has tokens 0 .. {len(pieces) - 1}, got {token}")
                pieces[token] = BETWEEN + str(number).encode() + BETWEEN

    def token_bytes(self, side: str) -> list[int]:
        """The number of bytes that each token of the ``"student"`` or the ``"teacher"`` stands for, by token id."""
        pieces = self.student if side == "student" else self.teacher
        return [0 if piece.startswith(BETWEEN) else len(piece) for piece in pieces]

    def align(self, student: Tokens, teacher: Tokens, *, cut: bool = False) -> tuple[Tensor, Tensor]:
        """The chunks of one text, see :func:`align`; tokens of the prompt are in none.

        Raises:
            ValueError: the answers are different texts, or a token is not in its vocabulary.
        """
        ours, theirs = _answer(student, self.student, "student"), _answer(teacher, self.teacher, "teacher")
        found = align(ours, theirs, cut=cut)
        before = (torch.full((side.prompt,), -1, dtype=torch.int64) for side in (student, teacher))
        return torch.cat([next(before), found[0]]), torch.cat([next(before), found[1]])

    def batch(
        self,
        rows: Sequence[tuple[Tokens, Tokens]],
        *,
        index: Tensor | None = None,
        lengths: tuple[int, int] | None = None,
        cut: bool = False,
    ) -> Batch:
        """Puts texts together, padded on the right.

        Args:
            rows: ``(student's tokens, teacher's tokens)`` of each text.
            index: int64 ``[N]``, the row of each in its data set.
            lengths: tokens of every row on either side; None: those of the longest. Longer ones are cut.
            cut: whether one side may end before the other, as it does where rows are cut.

        Returns:
            A batch whose ``inputs`` and view ``teacher`` have ``input_ids`` and ``attention_mask``.

        Raises:
            ValueError: no row; answers of a row that are different texts, or tokens that are not in their vocabulary.
        """
        if not rows:
            raise ValueError("expected a text at least, got none")
        if lengths is not None:
            rows = [(_cut(ours, lengths[0]), _cut(theirs, lengths[1])) for ours, theirs in rows]
        chunks = [self.align(*row, cut=cut or lengths is not None) for row in rows]
        sizes = lengths or (max(len(ours.ids) for ours, _ in rows), max(len(theirs.ids) for _, theirs in rows))
        student = _padded([ours for ours, _ in rows], sizes[0], self.student_padding)
        teacher = _padded([theirs for _, theirs in rows], sizes[1], self.teacher_padding)
        alignment = {
            "teacher_labels": teacher.pop("labels"),
            "student_chunks": _filled([ours for ours, _ in chunks], sizes[0], -1),
            "teacher_chunks": _filled([theirs for _, theirs in chunks], sizes[1], -1),
        }
        return Batch(student, student.pop("labels"), index, {"teacher": teacher, "alignment": alignment})


def _answer(tokens: Tokens, pieces: Sequence[bytes], side: str) -> list[bytes]:
    if wrong := [token for token in tokens.ids if not 0 <= token < len(pieces)]:
        raise ValueError(
            f"expected tokens 0 .. {len(pieces) - 1} of the {side}'s vocabulary, got {wrong[0]}; are they of another "
            "tokenizer?"
        )
    return [pieces[token] for token in tokens.ids[tokens.prompt :]]


def _cut(tokens: Tokens, length: int) -> Tokens:
    return Tokens(tokens.ids[:length], min(tokens.prompt, length))


def _padded(rows: Sequence[Tokens], length: int, padding: int) -> dict[str, Tensor]:
    """``input_ids``, ``attention_mask`` and ``labels`` of rows, each ``[N, length]``."""
    ids = [torch.tensor(list(row.ids), dtype=torch.int64) for row in rows]
    labels = [each.clone() for each in ids]
    for row, each in zip(rows, labels, strict=True):
        each[: row.prompt] = IGNORE
    return {
        "input_ids": _filled(ids, length, padding),
        "attention_mask": _filled([torch.ones_like(each) for each in ids], length, 0),
        "labels": _filled(labels, length, IGNORE),
    }


def _filled(rows: Sequence[Tensor], length: int, value: int) -> Tensor:
    found = torch.full((len(rows), length), value, dtype=torch.int64)
    for row, each in zip(found, rows, strict=True):
        row[: len(each)] = each
    return found
