"""Facts of a tokenizer's vocabulary: how many bytes each token stands for, and which tokenizer it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from kdx_text.token_pieces import token_pieces

__all__ = ["folder_tokenizer_id", "token_bytes", "tokenizer_id"]


def tokenizer_id(tokenizer: Any) -> str:
    """A hash of a vocabulary, the same for tokenizers whose tokens have the same ids.

    Args:
        tokenizer: of transformers or tokenizers; it has ``get_vocab()``.

    Returns:
        16 hexadecimal digits.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(vocabulary, separators=(",", ":")).encode()).hexdigest()[:16]


def folder_tokenizer_id(folder: Path) -> str | None:
    """That of the tokenizer in a model's folder; None where there is no ``tokenizer.json`` in it."""
    from tokenizers import Tokenizer

    path = Path(folder) / "tokenizer.json"
    return tokenizer_id(Tokenizer.from_file(str(path))) if path.is_file() else None


def token_bytes(tokenizer: Any) -> list[int] | None:
    """The number of bytes of text that each token stands for, by token id; 0 for special tokens.

    Args:
        tokenizer: a fast tokenizer of transformers, byte-level or with byte fallback and spaces written as U+2581.

    Returns:
        A number for every id; None where they cannot be told from the vocabulary, as of word pieces.
    """
    try:
        return [len(piece) for piece in token_pieces(tokenizer)]
    except ValueError:
        return None
