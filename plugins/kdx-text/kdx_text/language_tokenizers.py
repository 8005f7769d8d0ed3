"""Tokenizers of language models: from local files, or trained on the texts."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdx_text.gguf_file import read_gguf_tokenizer
from kdx_text.smollm2 import smollm2_file

__all__ = ["END", "language_tokenizer", "train_tokenizer"]

END = "<|endoftext|>"
"""The token that a trained tokenizer puts behind a text."""


def language_tokenizer(tokenizer: Path | str) -> Any:
    """A tokenizer of transformers from local files; nothing is downloaded.

    Args:
        tokenizer: a folder (``save_pretrained``), a ``tokenizer.json``, a GGUF file, or ``"smollm2"``, that of
            SmolLM2 in the package with its weights.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ModuleNotFoundError: the package of SmolLM2, or gguf, is not installed.
        ValueError: it is no tokenizer, or code of its own, which is never run.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = smollm2_file() if str(tokenizer) == "smollm2" else Path(tokenizer)
    if not path.exists():
        raise FileNotFoundError(
            f"tokenizer: there is nothing at {str(path)!r}; give a local one, or leave it out to have one trained "
            "on the texts"
        )
    if path.is_dir():
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    if path.suffix == ".json":
        return PreTrainedTokenizerFast(tokenizer_file=str(path))
    return read_gguf_tokenizer(path)


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """Trains a byte-level BPE on texts: the same texts give the same tokens.

    Sennrich et al. 2016 (https://arxiv.org/abs/1508.07909) on bytes, as GPT-2 has it. Token 0 is ``<|endoftext|>``,
    which ends a text and fills rows; then come the 256 bytes, so that every text has tokens.

    Args:
        texts: to be trained on.
        vocabulary: number of tokens at most, 257 or more.

    Returns:
        A fast tokenizer of transformers.

    Raises:
        ValueError: ``vocabulary`` is too small.
    """
    if vocabulary < 257:
        raise ValueError(f"vocabulary must be 257 or more, a token for each byte and one for the end, got {vocabulary}")
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return _trained(_Texts(texts, digest.hexdigest()), vocabulary)


class _Texts:
    """Texts that are told apart by their hash, so that training and test rows share one tokenizer."""

    def __init__(self, texts: Sequence[str], digest: str) -> None:
        self.texts = texts
        self.digest = digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Texts) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@functools.lru_cache(maxsize=1)
def _trained(texts: _Texts, vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts.texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token=END)
