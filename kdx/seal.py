"""Seals: checksums inside text and weights files, which show damage when the file is read again.

A sealed file carries the SHA-256 of itself, taken with 64 zeros in the checksum's place; any changed bit shows.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from kdx import __version__
from kdx.errors import DamagedError
from kdx.files import named

__all__ = ["METADATA", "SEAL", "check_tensors", "read_metadata", "read_sealed_text", "seal_tensors", "seal_text"]

_EMPTY = "0" * 64
_LINE = "# sha256: "
SEAL = "kdx.sha256"
METADATA = {"kdx": __version__, SEAL: _EMPTY}
"""The metadata of a safetensors file before it is sealed by :func:`seal_tensors`."""


def seal_text(text: str) -> str:
    """A text with its checksum as a comment in a last line, as YAML has them."""
    return f"{text}{_LINE}{hashlib.sha256(text.encode()).hexdigest()}\n"


def read_sealed_text(path: Path, remedy: str) -> str:
    """A text that :func:`seal_text` sealed, with its last line.

    Args:
        path: of the file.
        remedy: what to do if it is not as it was written, the end of a sentence.

    Raises:
        DamagedError: it is not as it was written.
        FileError: it cannot be read.
    """
    with named(path):
        data = path.read_bytes()
    text = data[: -len(_LINE) - 65]
    try:
        if data == seal_text(text.decode()).encode():
            return data.decode()
    except UnicodeDecodeError:
        pass
    raise DamagedError(f"{path} is not as kdx wrote it: damaged, or edited by hand; {remedy}")


def seal_tensors(data: bytes) -> bytes:
    """A safetensors file, given whole and with :data:`METADATA`, with its checksum."""
    at = data.index(_EMPTY.encode())
    return b"".join((data[:at], hashlib.sha256(data).hexdigest().encode(), data[at + len(_EMPTY) :]))


def check_tensors(path: Path, remedy: str, *, sealed: bool) -> None:
    """Checks the seal of a safetensors file; of one that kdx did not write, only that it is one.

    Args:
        path: of the file.
        remedy: what to do if it is damaged, the end of a sentence.
        sealed: whether one without a seal is damaged, as kdx itself must have written it.

    Raises:
        DamagedError: it is not as it was written.
        FileError: it cannot be read.
    """
    with named(path):
        data = path.read_bytes()
    metadata = _metadata(data)
    if metadata is None:
        raise DamagedError(f"{path} is damaged: it is no safetensors file; {remedy}")
    if not sealed and not METADATA.keys() & metadata.keys():
        return
    seal = str(metadata.get(SEAL)).encode()
    at = data.find(seal)
    view = memoryview(data)
    digest = hashlib.sha256(view[: max(at, 0)])
    digest.update(_EMPTY.encode())
    digest.update(view[at + len(_EMPTY) :])
    if digest.hexdigest().encode() != seal:
        raise DamagedError(f"{path} is damaged: its checksum is missing or another; {remedy}")


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file, of which only the header is read.

    Raises:
        DamagedError: it is no safetensors file.
        FileError: it cannot be read.
    """
    with named(path), path.open("rb") as file:
        head = file.read(8)
        data = head + file.read(min(int.from_bytes(head, "little"), path.stat().st_size))
    metadata = _metadata(data)
    if metadata is None:
        raise DamagedError(f"{path} is damaged: it is no safetensors file; get it again from its source")
    return metadata


def _metadata(data: bytes) -> dict[str, Any] | None:
    """The metadata of a safetensors file: an 8-byte length, a JSON header, the numbers. None if it is none."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")].decode())
        return dict(header.get("__metadata__", {}))
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        return None
