"""Documents as rows of tokens for causal language models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdx_text.documents import read_documents, split_documents
from kdx_text.language_tokenizers import language_tokenizer, train_tokenizer
from kdx_text.vocabulary import token_bytes, tokenizer_id

__all__ = ["TokenRows", "TokenStream"]

IGNORE = -100


class TokenRows(Dataset[tuple[Any, Tensor]]):
    """Documents as rows of ``length`` tokens; item ``i`` is ``(inputs, labels [T] int64)``.

    Behind each document stands its tokenizer's end token, if it has one. Labels are the tokens themselves, for the task
    ``causal-lm``, which shifts them.

    Packed: the documents come one behind the other, rows are cut every ``length`` tokens, and inputs are
    ``{"input_ids": [T], "position_ids": [T]}``: positions begin anew with every document and every row, so that models
    of transformers let no document see another, and the first token of a document has the label ``-100``, so that none
    is predicted from the document before it. What is left of the last row is filled, with labels of ``-100``. Not
    packed: a document begins a row of its own, goes on in further ones if it is longer, and the rest is filled; inputs
    are ``input_ids`` alone, as nothing that counts sees what comes behind it.

    Args:
        documents: the texts.
        tokenizer: of transformers.
        length: T, tokens in a row, 2 or more.
        packed: see above.
        limit: takes so many rows, spread over them all; None takes all.

    Attributes:
        ids: int64 ``[N, T]``.
        positions: int64 ``[N, T]``, of packed rows; else None.
        targets: int64 ``[N, T]``, the labels.
        num_classes: number of tokens that the tokenizer has.
        input_shape: ``(T,)``.
        token_bytes: number of bytes that each token stands for, for bits per byte; None where the tokens do not keep
            the bytes of these documents, as with a tokenizer that lowers letters.
        tokenizer_id: which tokenizer it is, a hash of its vocabulary; models and teachers of another are refused.
        tokenizer: of transformers.

    Raises:
        ValueError: ``length`` below 2, ``limit`` below 1, or documents without a token.
    """

    def __init__(
        self, documents: Sequence[str], tokenizer: Any, *, length: int, packed: bool = True, limit: int | None = None
    ) -> None:
        if length < 2:
            raise ValueError(f"length must be at least 2 tokens, got {length}")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be 1 or more, or None for all rows; got {limit}")
        encoded = _encoded(documents, tokenizer)
        end = tokenizer.eos_token_id
        self.token_bytes = _fitting(token_bytes(tokenizer), documents, encoded)
        if end is not None:
            encoded = [torch.cat([each, torch.tensor([end])]) for each in encoded]
        if not (encoded := [each for each in encoded if len(each)]):
            raise ValueError("documents: expected a token at least, got none")
        fill = next(each for each in (tokenizer.pad_token_id, end, 0) if each is not None)
        self.ids, self.targets, positions = (_packed if packed else _padded)(encoded, length, fill)
        step = max(len(self.ids) // limit, 1) if limit else 1
        self.ids, self.targets = self.ids[::step][:limit], self.targets[::step][:limit]
        self.positions = positions[::step][:limit] if packed else None
        self.tokenizer = tokenizer
        self.tokenizer_id = tokenizer_id(tokenizer)
        self.num_classes = len(tokenizer)
        self.input_shape = (length,)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        """The inputs and the labels of row ``index``."""
        ids = self.ids[index]
        inputs = ids if self.positions is None else {"input_ids": ids, "position_ids": self.positions[index]}
        return inputs, self.targets[index]

    def decode(self, ids: Sequence[int]) -> str:
        """The text that token ids stand for."""
        text: str = self.tokenizer.decode(ids)
        return text

    def save_tokenizer(self, folder: Path) -> None:
        """Writes the tokenizer's files into a folder, beside an exported model."""
        self.tokenizer.save_pretrained(folder)


class TokenStream(TokenRows):
    """Text files, or texts, as rows of tokens for causal language models, split into training and test by document.

    Rows, positions and labels are those of :class:`TokenRows`. The same documents give the same rows, in whatever order
    the files are.

    Args:
        split: ``"train"`` or ``"test"``.
        documents: a folder of ``.txt`` files (or ``.jsonl`` ones), one such file, or the texts themselves.
        tokenizer: a tokenizer's folder, a ``tokenizer.json``, a GGUF file, or ``"smollm2"``; None trains a byte-level
            BPE on the training documents.
        vocabulary: number of tokens of a tokenizer that is trained.
        length: T, tokens in a row.
        packed: documents one behind the other in the rows, with positions; False: each begins a row of its own.
        test: the share of documents held out for the test, or where other documents are.
        separator: cuts every text into documents; None: a file is one.
        text: the key of the text in ``.jsonl`` lines.
        limit: takes so many rows, spread over the split; None takes all.

    Raises:
        FileNotFoundError: there are no such documents, or no such tokenizer.
        ValueError: a split or number that there is not, or documents that cannot be read or split.
    """

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        *,
        documents: Path | tuple[str, ...],
        tokenizer: Path | Literal["smollm2"] | None = None,
        vocabulary: int = 4096,
        length: int = 128,
        packed: bool = True,
        test: float | Path = 0.1,
        separator: str | None = None,
        text: str = "text",
        limit: int | None = None,
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        train = sorted(read_documents(documents, separator=separator, text=text))
        if isinstance(test, float | int):
            train, held_out = split_documents(train, test)
        else:
            held_out = sorted(read_documents(test, separator=separator, text=text))
        made = train_tokenizer(train, vocabulary) if tokenizer is None else language_tokenizer(tokenizer)
        super().__init__(train if split == "train" else held_out, made, length=length, packed=packed, limit=limit)


def _encoded(documents: Sequence[str], tokenizer: Any) -> list[Tensor]:
    found = tokenizer(list(documents), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [torch.tensor(each, dtype=torch.int64) for each in found["input_ids"]]


def _fitting(sizes: list[int] | None, documents: Sequence[str], encoded: Sequence[Tensor]) -> list[int] | None:
    """Sizes of tokens if those of every document add up to its bytes, else None."""
    if sizes is None:
        return None
    table = torch.tensor(sizes)
    whole = all(int(table[ids].sum()) == len(text.encode()) for text, ids in zip(documents, encoded, strict=True))
    return sizes if whole else None


def _packed(documents: Sequence[Tensor], length: int, fill: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and positions ``[N, T]`` of documents one behind the other."""
    ids = torch.cat([*documents, torch.full((-sum(map(len, documents)) % length,), fill)])
    starts = torch.zeros_like(ids)
    begins = torch.tensor([0, *map(len, documents)]).cumsum(0)  # of each document, and of what is filled
    begins = begins[begins < len(ids)]
    starts[begins] = begins
    labels = ids.clone()
    labels[begins] = IGNORE
    labels[sum(map(len, documents)) :] = IGNORE
    place = torch.arange(len(ids))
    positions = place - torch.maximum(starts.cummax(0).values, place // length * length)
    rows = (-1, length)
    return ids.view(rows), labels.view(rows), positions.view(rows)


def _padded(documents: Sequence[Tensor], length: int, fill: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and positions ``[N, T]`` of documents that each begin a row."""
    parts = [part for each in documents for part in each.split(length)]
    ids = torch.full((len(parts), length), fill)
    labels = torch.full_like(ids, IGNORE)
    for row, part in enumerate(parts):
        ids[row, : len(part)] = labels[row, : len(part)] = part
    return ids, labels, torch.arange(length).expand_as(ids)
