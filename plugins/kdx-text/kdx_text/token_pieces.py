"""The bytes that each token of a vocabulary stands for."""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["token_pieces"]

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
LETTERS = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + k): byte for k, byte in enumerate(_OTHERS)}
"""Letter -> byte of a byte-level BPE, which writes every byte as a letter that can be printed (GPT-2)."""


def token_pieces(tokenizer: Any) -> list[bytes]:
    """The bytes of text that each token stands for, by token id; none (``b""``) for special tokens.

    Args:
        tokenizer: a fast tokenizer of transformers: byte-level, as those of GPT-2, Llama 3, Qwen and SmolLM are, or
            with byte fallback and spaces written as U+2581, as those of Llama 2 and Gemma.

    Returns:
        A piece for every id, as many as the vocabulary with its added tokens has.

    Raises:
        TypeError: it is no fast tokenizer.
        ValueError: its tokens do not say their bytes, as word pieces do not.

    Example:
        >>> from kdx_text.language_tokenizers import train_tokenizer
        >>> made = train_tokenizer(["the cat, the dog"], 260)
        >>> [token_pieces(made)[token] for token in made(" the cat")["input_ids"]]
        [b' ', b'the', b' ', b'c', b'a', b't']
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TypeError(f"expected a fast tokenizer of transformers, got {type(tokenizer).__name__}")
    config = json.loads(backend.to_str())
    kinds = json.dumps([config.get("pre_tokenizer"), config.get("decoder")])
    byte_level, fallback = '"ByteLevel"' in kinds, '"ByteFallback"' in kinds
    if not byte_level and not fallback:
        raise ValueError(
            "the tokens of this tokenizer do not say which bytes they stand for, as those of a byte-level BPE or of "
            "one with byte fallback do (word pieces leave out the spaces); take another tokenizer"
        )
    added = {each["id"]: each for each in config["added_tokens"]}
    special = set(tokenizer.all_special_ids) | {number for number, each in added.items() if each["special"]}
    pieces = [b""] * len(tokenizer)
    for token, number in tokenizer.get_vocab().items():
        if number in special:
            continue
        if number in added:  # written as they are
            pieces[number] = token.encode()
        elif byte_level:
            pieces[number] = bytes(LETTERS[letter] for letter in token)
        elif byte := _BYTE.fullmatch(token):
            pieces[number] = bytes([int(byte[1], 16)])
        else:
            pieces[number] = token.replace("\u2581", " ").encode()
    return pieces
