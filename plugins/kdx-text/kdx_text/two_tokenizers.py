"""Texts in the tokens of a student and of a teacher with another tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from kdx import Batch
from kdx.datasets import Tokens, TwoTokenisations, TwoVocabularies
from kdx_text.documents import read_documents, split_documents
from kdx_text.language_tokenizers import language_tokenizer, train_tokenizer
from kdx_text.token_pieces import token_pieces
from kdx_text.vocabulary import tokenizer_id

__all__ = ["TwoTokenizerTexts", "TwoTokenizers"]

Row = str | Sequence[Any] | Mapping[str, Any]
"""A text that is learned whole, ``(prompt, answer)``, or a mapping as trl has them."""


class TwoTokenizers:
    """Tokenises texts for a student and for a teacher with another tokenizer; a ``collate_fn`` of data loaders.

    A row is a text, learned whole; ``(prompt, answer)``; or a mapping with ``text``, with ``prompt`` and
    ``completion``, or with ``messages``, whose last one is the answer and whose others each tokenizer puts into its own
    chat template. Prompts may differ between the two, the answers are the same text: from it the components ``alm`` and
    ``uld`` learn, and the cross-entropy. Both sides begin as their tokenizer begins a text (a beginning token is part
    of the prompt), and end with its end token, of which the teacher teaches too.

    The batches are those of :class:`kdx.datasets.TwoVocabularies`: the teacher sees the view ``teacher``.

    Args:
        student: the student's tokenizer, a fast one of transformers, see
            :func:`kdx_text.token_pieces.token_pieces`.
        teacher: the teacher's.
        end: whether answers are ended.
        lengths: tokens of every row of student and teacher; longer ones are cut. None: those of the longest row.

    Raises:
        TypeError: a tokenizer that is not fast; in a call, a row of another kind.
        ValueError: tokens that do not say their bytes; in a call, answers that the tokenizers turn into different
            bytes.
    """

    def __init__(self, student: Any, teacher: Any, *, end: bool = True, lengths: tuple[int, int] | None = None) -> None:
        self.tokenizers = {"student": student, "teacher": teacher}
        pieces = [_pieces(side, each) for side, each in self.tokenizers.items()]
        self.lengths = lengths
        self.ends = tuple(each.eos_token_id if end else None for each in (student, teacher))
        if None in self.ends:
            self.ends = (None, None)
        paddings = (
            next(token for token in (each.pad_token_id, each.eos_token_id, 0) if token is not None)
            for each in (student, teacher)
        )
        self.vocabularies = TwoVocabularies(
            *pieces,
            same={} if self.ends[0] is None else {self.ends[0]: self.ends[1]},
            student_padding=next(paddings),
            teacher_padding=next(paddings),
        )

    def tokens(self, row: Row) -> tuple[Tokens, Tokens]:
        """The tokens of one row on both sides."""
        found = [
            _tokens(tokenizer, row, end) for tokenizer, end in zip(self.tokenizers.values(), self.ends, strict=True)
        ]
        return found[0], found[1]

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """A batch of rows."""
        return self.vocabularies.batch([self.tokens(row) for row in rows], lengths=self.lengths)


class TwoTokenizerTexts(TwoTokenisations):
    """Text files, or texts, as rows in the tokens of a student and of a teacher, split by document.

    The rows are those of :class:`kdx.datasets.TwoTokenisations`: a document begins a row of its own and goes on in
    further ones, which end at the same byte on both sides; behind it stands the end token of either tokenizer.

    In a recipe it is the data set, and with ``side: teacher`` the view that the teacher is trained on and sees
    (``data.views``, ``teacher.view``), both with the same other options.

    Args:
        split: ``"train"`` or ``"test"``.
        documents: a folder of ``.txt`` files (or ``.jsonl`` ones), one such file, or the texts themselves.
        teacher_tokenizer: the teacher's tokenizer: a folder, a ``tokenizer.json``, a GGUF file, or ``"smollm2"``.
        tokenizer: the student's, likewise; None trains a byte-level BPE on the training documents.
        vocabulary: number of tokens of a tokenizer that is trained.
        length: tokens in a row of the student.
        teacher_length: tokens in a row of the teacher; None: ``length``.
        side: ``"student"`` or ``"teacher"``.
        test: the share of documents held out for the test, or where other documents are.
        separator: cuts every text into documents; None: a file is one.
        text: the key of the text in ``.jsonl`` lines.

    Attributes:
        tokenizer_id: which tokenizer the targets are of, a hash of its vocabulary.
        tokenizer: that one, of transformers.

    Raises:
        FileNotFoundError: there are no such documents, or no such tokenizer.
        ValueError: a split or number that there is not, documents that cannot be read or split, or tokenizers that turn
            a document into different bytes.
    """

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        *,
        documents: Path | tuple[str, ...],
        teacher_tokenizer: Path | Literal["smollm2"],
        tokenizer: Path | Literal["smollm2"] | None = None,
        vocabulary: int = 4096,
        length: int = 128,
        teacher_length: int | None = None,
        side: Literal["student", "teacher"] = "student",
        test: float | Path = 0.1,
        separator: str | None = None,
        text: str = "text",
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        train = sorted(read_documents(documents, separator=separator, text=text))
        if isinstance(test, float | int):
            train, held_out = split_documents(train, test)
        else:
            held_out = sorted(read_documents(test, separator=separator, text=text))
        made = train_tokenizer(train, vocabulary) if tokenizer is None else language_tokenizer(tokenizer)
        both = TwoTokenizers(made, language_tokenizer(teacher_tokenizer))
        texts = [both.tokens(each) for each in (train if split == "train" else held_out)]
        super().__init__(texts, both.vocabularies, lengths=(length, teacher_length or length), side=side)
        self.tokenizer = both.tokenizers[side]
        self.tokenizer_id = tokenizer_id(self.tokenizer)

    def save_tokenizer(self, folder: Path) -> None:
        """Writes the tokenizer's files into a folder, beside an exported model."""
        self.tokenizer.save_pretrained(folder)


def _pieces(side: str, tokenizer: Any) -> list[bytes]:
    try:
        return token_pieces(tokenizer)
    except (TypeError, ValueError) as error:
        raise type(error)(f"the {side}'s tokenizer: {error}") from error


def _tokens(tokenizer: Any, row: Row, end: int | None) -> Tokens:
    """The tokens of a row by one tokenizer."""
    prompt, answer = _parts(tokenizer, row)
    if isinstance(prompt, list):  # a conversation, whose template has its own beginning
        given = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        before = tokenizer(given, add_special_tokens=False, verbose=False)["input_ids"]
    else:
        before = tokenizer(prompt, verbose=False)["input_ids"]
        if before and before[-1] == tokenizer.eos_token_id != tokenizer.bos_token_id:
            before = before[:-1]
    ids = tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"]
    return Tokens([*before, *ids, *([] if end is None else [end])], len(before))


def _parts(tokenizer: Any, row: Row) -> tuple[str | list[Any], str]:
    """The prompt and the answer of a row."""
    given: Any = row
    if isinstance(row, Mapping):
        if isinstance(messages := row.get("messages"), list) and messages:
            given = (messages[:-1], messages[-1:])
        else:
            given = row["text"] if "text" in row else (row.get("prompt"), row.get("completion"))
    prompt, answer = ("", given) if isinstance(given, str) else tuple(given) if len(given) == 2 else (None, None)
    if isinstance(prompt, list) and isinstance(answer, list) and len(answer) == 1:
        answer = answer[0].get("content")
    if not isinstance(prompt, str | list) or not isinstance(answer, str):
        shown = sorted(row) if isinstance(row, Mapping) else type(row).__name__
        raise TypeError(
            "expected a text, (prompt, answer) or a mapping with 'text', with 'prompt' and 'completion' or with "
            f"'messages', whose answers are texts, got {shown}"
        )
    if isinstance(prompt, list) and not getattr(tokenizer, "chat_template", None):
        raise ValueError("messages: a tokenizer has no chat template; give (prompt, answer) as texts")
    return prompt, answer
