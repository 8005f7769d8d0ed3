"""Texts in the tokens of a student and of a teacher, as rows of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from torch import Tensor
from torch.utils.data import Dataset

from kdx.batch import Batch
from kdx.datasets.two_vocabularies import Tokens, TwoVocabularies

__all__ = ["TwoTokenisations"]


class TwoTokenisations(Dataset[Batch]):
    """Texts in the tokens of a student and of a teacher with another tokenizer, in rows of fixed lengths.

    A row is a :class:`kdx.Batch` of one sample: the student's token ids ``[S]`` as inputs, its labels ``[S]`` as
    target, the teacher's ids ``[T]`` as the view ``teacher``, and the view ``alignment`` as
    :class:`kdx.datasets.TwoVocabularies` describes it. With ``side="teacher"`` it is the teacher's ids and labels
    alone: the data set of the view, on which a recipe's teacher is trained and judged.

    A text that is longer than a row on either side is split where a chunk ends, and each of its rows begins with the
    text's prompt, as the marker of a beginning; or, with ``split=False``, it is cut, as an answer to a question is.

    Args:
        texts: ``(student's tokens, teacher's tokens)`` of each text.
        vocabularies: those of both.
        lengths: S and T, tokens in a row of either side, prompt included.
        split: whether a longer text goes on in further rows.
        side: ``"student"`` or ``"teacher"``.

    Attributes:
        targets: int64 ``[N, S]``, or ``[N, T]`` of the teacher's side, ``-100`` in prompts and where rows are filled.
        num_classes: number of tokens in the vocabulary.
        input_shape: ``(S,)`` or ``(T,)``.
        token_bytes: number of bytes that each token stands for, by token id.
        own_targets: whether it is the view of the teacher, whose targets are its own.

    Raises:
        ValueError: no text, a text that both sides tokenise to different bytes, or a length that leaves no room behind
            a prompt.

    Example:
        >>> vocabularies = TwoVocabularies([b"a", b"b", b"ab"], [b"a", b"b"])
        >>> rows = TwoTokenisations([(Tokens([2, 2, 1]), Tokens([0, 1, 0, 1, 1]))], vocabularies, lengths=(2, 4))
        >>> rows.targets.tolist()
        [[2, 2], [1, -100]]
        >>> rows[0].views["alignment"]["teacher_chunks"].tolist()
        [0, 0, 1, 1]
    """

    def __init__(
        self,
        texts: Sequence[tuple[Tokens, Tokens]],
        vocabularies: TwoVocabularies,
        *,
        lengths: tuple[int, int],
        split: bool = True,
        side: Literal["student", "teacher"] = "student",
    ) -> None:
        if side not in ("student", "teacher"):
            raise ValueError(f"side must be 'student' or 'teacher', got {side!r}")
        for ours, theirs in texts:
            if ours.prompt >= lengths[0] or theirs.prompt >= lengths[1]:
                raise ValueError(
                    f"lengths: expected room behind the prompts of {ours.prompt} and {theirs.prompt} tokens, got rows "
                    f"of {lengths[0]} and {lengths[1]}"
                )
        rows = [row for text in texts for row in (_split(*text, vocabularies, lengths) if split else [text])]
        whole = vocabularies.batch(rows, lengths=lengths)
        teacher = whole.views["teacher"]["input_ids"]
        self.side = side
        self.own_targets = side == "teacher"
        self.alignment: dict[str, Tensor] = dict(whole.views["alignment"])
        self.teacher_ids: Tensor = teacher
        self.ids: Tensor = teacher if self.own_targets else whole.inputs["input_ids"]
        self.targets: Tensor = self.alignment["teacher_labels"] if self.own_targets else whole.targets
        self.token_bytes = vocabularies.token_bytes(side)
        self.num_classes = len(self.token_bytes)
        self.input_shape = (self.ids.shape[1],)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> Batch:
        """The tokens of one row, with the teacher's tokens and the alignment as views."""
        if self.own_targets:
            return Batch(self.ids[row], self.targets[row], row)  # type: ignore[arg-type]  # of a sample, not of a batch
        alignment = {name: values[row] for name, values in self.alignment.items()}
        views = {"teacher": self.teacher_ids[row], "alignment": alignment}
        return Batch(self.ids[row], self.targets[row], row, views)  # type: ignore[arg-type]


def _split(
    student: Tokens, teacher: Tokens, vocabularies: TwoVocabularies, lengths: tuple[int, int]
) -> Iterator[tuple[Tokens, Tokens]]:
    """A text as rows that fit, each ended by a chunk; a chunk that is longer than a row is cut."""
    sides = (student, teacher)
    chunks = vocabularies.align(student, teacher)
    # behind the last token of each chunk, on either side
    behind = [{int(chunk): place + 1 for place, chunk in enumerate(each.tolist()) if chunk >= 0} for each in chunks]
    begin = [side.prompt for side in sides]
    fits = begin
    for chunk in behind[0]:
        end = [places[chunk] for places in behind]
        if any(side.prompt + end[k] - begin[k] > lengths[k] for k, side in enumerate(sides)) and fits != begin:
            yield _row(student, begin[0], fits[0]), _row(teacher, begin[1], fits[1])
            begin = fits
        fits = end
    if fits != begin:
        yield _row(student, begin[0], fits[0]), _row(teacher, begin[1], fits[1])


def _row(tokens: Tokens, begin: int, end: int) -> Tokens:
    return Tokens([*tokens.ids[: tokens.prompt], *tokens.ids[begin:end]], tokens.prompt)
