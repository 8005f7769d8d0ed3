"""Files written as a whole or not at all; whoever reads one again notices if it is not what was written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kdx.errors import DamagedError, FileError, RunExistsError

__all__ = [
    "atomic_write",
    "check_name",
    "named",
    "named_by_checksum",
    "read_json",
    "read_text",
    "refuse_links",
    "remove_leftovers",
    "sha256_of",
    "write_json",
]

_LEFTOVER = re.compile(r"\..+\.\d+\.tmp")

CHECKSUM = "sha256"
"""The last key of a JSON file of kdx: the checksum of all others."""

MOST_TEXT = 1 << 20
"""Bytes of a text that a person wrote."""

DIGITS = 16
"""Hex digits of a checksum in the name of a file."""

_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of this user's space",
    errno.EFBIG: "a limit on the size of files is set, raise it (ulimit -f)",
    errno.EACCES: "this user may not; change its owner or mode, or take another place",
    errno.EPERM: "this user may not; change its owner or mode, or take another place",
    errno.EROFS: "take a place that can be written to",
    errno.EISDIR: "there is a folder of this name; move it away, or give a file",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
}


def atomic_write(path: Path, write: Callable[[Path], object], *, name: Callable[[], str] | None = None) -> Path:
    """Lets ``write`` fill a temporary file beside ``path``, flushes it to disk and renames it over ``path``.

    The file has the mode that the umask gives to new files, whatever ``write`` makes of it: safetensors writes files
    that none but their owner can read. If anything fails, ``path`` is as it was and the temporary file is gone. The
    folder must be there: one that went missing during a run is not made anew.

    Args:
        path: of the file.
        write: is given the temporary path.
        name: what the file is called in the end, asked for once it is written; the name of ``path`` by default.

    Returns:
        Where the file is.

    Raises:
        FileError: the disk is full, the folder is gone or may not be written to; it says what is there now.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if os.path.lexists(temporary):  # of a killed process that had the same id
            temporary.unlink()
        with temporary.open("x") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        path = path.with_name(name()) if name else path
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, FileError):
            there = "what was there before is unchanged" if os.path.lexists(path) else "no part of it is left behind"
            raise _file_error(path, "written", error, there) from error
        raise
    return path


@contextlib.contextmanager
def named(path: Path, done: str = "read") -> Iterator[None]:
    """Makes errors of the system within it name a file: ``done`` says what cannot be done with it.

    Raises:
        FileError: in place of an OSError.
    """
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise _file_error(path, done, error) from error


def _file_error(path: Path, done: str, error: OSError, there: str = "") -> FileError:
    reason, advice = error.strerror or str(error), _ADVICE.get(error.errno or 0, "")
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not path.parent.is_dir():
        reason, advice, there = f"its folder {path.parent} is gone", "was it moved or removed meanwhile?", ""
    found = FileError(f"{path} cannot be {done} ({reason})" + "".join(f"; {each}" for each in (there, advice) if each))
    found.errno = error.errno
    return found


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex.

    Raises:
        FileError: it cannot be read.
    """
    with named(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path, what: str) -> str:
    """A text that a person wrote, as UTF-8.

    Args:
        path: of the file.
        what: what it is, as messages say it.

    Raises:
        FileError: it cannot be read, is no text, or is far longer than anybody writes.
    """
    with named(path):
        size = path.stat().st_size
        if size > MOST_TEXT:
            raise FileError(
                f"{path} has {size:,} bytes and is no {what}, which has some kilobytes of text; give another"
            )
        data = path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is no text, so no {what}: byte {error.start} is not UTF-8; give another") from None
    if "\0" in text:
        raise FileError(f"{path} is no text, so no {what}: byte {data.index(0)} is zero; give another")
    return text


def named_by_checksum(name: str, digest: str) -> str:
    """The name of a file with the first digits of its SHA-256: ``step-00000100-1a2b3c4d5e6f7a8b.pt``."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}-{digest[:DIGITS]}.{suffix}"


def check_name(path: Path, remedy: str) -> None:
    """Compares a file with the checksum in its name; see :func:`named_by_checksum`.

    Args:
        path: of the file.
        remedy: what to do if it is damaged, the end of a sentence.

    Raises:
        DamagedError: it is not as it was written, or its name has no checksum.
        FileError: it cannot be read.
    """
    if path.stem.rpartition("-")[2] != sha256_of(path)[:DIGITS]:
        raise DamagedError(f"{path} is damaged: it has not the checksum that its name ends with; {remedy}")


def read_json(path: Path, remedy: str, **keys: type | tuple[type, ...]) -> dict[str, Any]:
    """The values that :func:`write_json` wrote, without the checksum.

    Args:
        path: of the file.
        remedy: what to do if it is damaged, the end of a sentence.
        **keys: the types of values that must be there.

    Raises:
        DamagedError: it is not as it was written.
        FileError: it cannot be read.
    """
    with named(path):
        data = path.read_bytes()
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: it is not the JSON that kdx wrote; {remedy}") from error
    if not isinstance(value, dict) or value.pop(CHECKSUM, None) != _checksum(value):
        raise DamagedError(f"{path} is damaged: its checksum is missing or another; {remedy}")
    for key, kind in keys.items():
        if not isinstance(value.get(key), kind):
            raise DamagedError(f"{path} is of another version of kdx: {key} is missing or of another type; {remedy}")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes plain values with their checksum, all or nothing."""
    plain = json.loads(json.dumps(value))  # as they will be read
    text = json.dumps(plain | {CHECKSUM: _checksum(plain)}, indent=2) + "\n"
    atomic_write(path, lambda temporary: temporary.write_text(text))


def _checksum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def refuse_links(paths: Iterable[Path]) -> None:
    """Checks that none of the paths that a run writes to is a link, nor anything below one.

    Raises:
        RunExistsError: one is; it is named, and where it leads.
    """
    for path in paths:
        if path.is_symlink():
            raise RunExistsError(
                f"{path} is a link to {os.readlink(path)}; kdx follows none inside the folder of a run, so that it "
                "writes nowhere else: put the file itself there or remove the link, or take another folder"
            )
        if path.is_dir():
            refuse_links(path.iterdir())


def remove_leftovers(folders: Iterable[Path]) -> None:
    """Removes the temporary files that killed processes left in these folders; nobody else may write there now."""
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if _LEFTOVER.fullmatch(path.name):
                path.unlink()
