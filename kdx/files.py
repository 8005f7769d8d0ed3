"""Files written as a whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["atomic_write", "read_json", "write_json"]


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
