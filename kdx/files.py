"""Files written as a whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from kdx.errors import RunExistsError

__all__ = ["atomic_write", "read_json", "refuse_links", "remove_leftovers", "write_json"]

_LEFTOVER = re.compile(r"\..+\.\d+\.tmp")


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Lets ``write`` fill a temporary file beside ``path``, flushes it to disk and renames it over ``path``.

    The file has the mode that the umask gives to new files, whatever ``write`` makes of it: safetensors writes files
    that none but their owner can read. If anything fails, ``path`` is as it was and the temporary file is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """A file of plain values."""
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes plain values, all or nothing."""
    atomic_write(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))


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
