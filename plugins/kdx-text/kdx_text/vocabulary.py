"""Facts of a tokenizer's vocabulary: how many bytes each token stands for, and which tokenizer it is."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

__all__ = ["folder_tokenizer_id", "token_bytes", "tokenizer_id"]

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


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
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    kinds = json.dumps([backend.get("pre_tokenizer"), backend.get("decoder")])
    special = set(tokenizer.all_special_ids) | {each["id"] for each in backend["added_tokens"] if each["special"]}
    added = {each["id"] for each in backend["added_tokens"]}
    sizes = [0] * len(tokenizer)
    for token, number in tokenizer.get_vocab().items():
        if number in special:
            continue
        if number in added:  # written as they are
            sizes[number] = len(token.encode())
        elif '"ByteLevel"' in kinds:
            sizes[number] = len(token)
        elif '"ByteFallback"' in kinds:
            sizes[number] = 1 if _BYTE.fullmatch(token) else len(token.replace("\u2581", " ").encode())
        else:
            return None
    return sizes
