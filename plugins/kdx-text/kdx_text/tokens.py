"""Texts as rows of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdx_text.minilm import minilm_folder

__all__ = ["Tokenised", "load_tokenizer"]


def load_tokenizer(path: Path | str) -> Any:
    """A tokenizer from a local folder (``save_pretrained``) or a ``tokenizer.json``; nothing is downloaded.

    ``"minilm"`` is that of all-MiniLM-L6-v2, from the package with its weights.

    Raises:
        FileNotFoundError: there is neither.
        ModuleNotFoundError: the package of all-MiniLM-L6-v2 is not installed.
        ValueError: it has no padding token, or is code of its own, which is never run.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = minilm_folder() if path in ("minilm", Path("minilm")) else Path(path)
    if not path.exists():
        raise FileNotFoundError(f"tokenizer: there is no folder or file {str(path)!r}; give a local one")
    if path.is_file():
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
        for name in ("[PAD]", "<pad>"):
            if tokenizer.pad_token is None and name in tokenizer.get_vocab():
                tokenizer.pad_token = name
    else:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        raise ValueError(f"tokenizer {str(path)!r} has no padding token; set tokenizer.pad_token and save it again")
    return tokenizer


class Tokenised(Dataset[tuple[Tensor, int]]):
    """Labelled texts as token ids of one length; item ``i`` is ``(ids [L] int64, label)``.

    Args:
        texts: the texts.
        labels: a class number for each.
        classes: the name of each class.
        tokenizer: folder or file, or ``"minilm"``, see :func:`load_tokenizer`.
        length: L; longer texts are cut, shorter ones filled with the padding token.

    Attributes:
        ids: int64 ``[N, L]``.
        targets: int64 ``[N]``.
        classes: the name of each class.
        num_classes: how many there are.
        input_shape: ``(L,)``.
        vocabulary: number of token ids, for a model without a pretrained embedding.
        padding: the id of the padding token.

    Raises:
        ValueError: no texts, a ``length`` below 2, or texts and labels that differ in number.
    """

    model_options = ("vocabulary",)

    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[int],
        classes: Sequence[str],
        *,
        tokenizer: Path | str,
        length: int,
    ) -> None:
        if not texts or len(texts) != len(labels):
            raise ValueError(f"expected texts with one label each, got {len(texts)} texts and {len(labels)} labels")
        if length < 2:
            raise ValueError(f"length must be at least 2 tokens, got {length}")
        loaded = load_tokenizer(tokenizer)
        encoded = loaded(list(texts), truncation=True, max_length=length, padding="max_length", return_tensors="pt")
        self.ids: Tensor = encoded["input_ids"]
        self.targets = torch.tensor(list(labels), dtype=torch.int64)
        self.classes = tuple(classes)
        self.num_classes = len(classes)
        self.input_shape = (length,)
        self.vocabulary = len(loaded)
        self.padding = int(loaded.pad_token_id)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The token ids and the label of row ``index``."""
        return self.ids[index], int(self.targets[index])
