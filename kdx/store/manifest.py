"""The manifest of a store: its contents, the teacher and data they come from, and the files that must be there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from kdx.errors import DamagedError, StoreError
from kdx.files import read_json, sha256_of, write_json

__all__ = [
    "FORMAT",
    "HEAD",
    "IMPORTED",
    "INDEX",
    "MANIFEST",
    "FileEntry",
    "Manifest",
    "differences",
    "file_entry",
    "shard_name",
    "verify_store",
]

FORMAT = 1
MANIFEST, INDEX, HEAD = "manifest.json", "index.safetensors", "head.safetensors"
IMPORTED = "imported"
"""The class of a teacher that is known by what it said alone."""

_FILE = re.compile(rf"{re.escape(INDEX)}|{re.escape(HEAD)}|shard-\d{{5,}}\.safetensors")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file that is complete: its length and checksum."""

    bytes: int
    sha256: str


def file_entry(data: bytes) -> FileEntry:
    """The entry of a file with this content."""
    return FileEntry(len(data), hashlib.sha256(data).hexdigest())


@dataclass(slots=True)
class Manifest:
    """Everything about a store except the numbers, kept in ``manifest.json``.

    Args:
        teacher: ``{"class", "hash"}``, see :func:`kdx.store.fingerprint.teacher_hash`.
        data: what the teacher saw, as plain text by topic; ``data_hash`` is its hash.
        what: the contents as written.
        dtype: dtype of the numbers.
        views: how many views of each sample; view v is the data set's epoch v.
        rows: number of samples.
        shard_rows: samples of one view in one file.
        seed: seed of the sampled classes.
        classes: number of classes C.
        class_dim: their axis, where :class:`kdx.responses.Responses` does not tell it.
        patterns: feature taps as written -> concrete names.
        tensors: stored name -> the content it belongs to.
        ragged: those of them that hold something for each place of a sequence, rows one after the other without their
            padding; each file then says how long its rows are.
        files: the complete files by name.
        data_hash: sha256 of ``data``.
        kdx: version that wrote it.
        layouts: concrete name of a stored feature -> what its axes mean, see :func:`kdx.layout.layout_to_json`; a
            feature without one has a layout that nobody knows.
        head: of stored hidden states, the scale and the softcap of the head whose weight is a file; else None.
        format: format of the store.
    """

    teacher: dict[str, str]
    data: dict[str, str]
    data_hash: str
    what: list[str]
    dtype: str
    views: int
    rows: int
    shard_rows: int
    seed: int
    classes: int
    patterns: dict[str, list[str]]
    tensors: dict[str, str]
    kdx: str
    class_dim: int | None = None
    layouts: dict[str, dict[str, Any]] = field(default_factory=dict)
    ragged: list[str] = field(default_factory=list)
    head: dict[str, Any] | None = None
    format: int = FORMAT
    files: dict[str, FileEntry] = field(default_factory=dict)

    @property
    def shards_per_view(self) -> int:
        """Files that one view takes."""
        return -(-self.rows // self.shard_rows)

    @property
    def shards(self) -> int:
        """Files that a complete store has beside the manifest, the index and the head."""
        return self.views * self.shards_per_view

    @property
    def complete(self) -> bool:
        """Whether every file was written."""
        once = {INDEX} if self.head is None else {INDEX, HEAD}
        return once <= self.files.keys() and all(shard_name(n) in self.files for n in range(self.shards))

    @property
    def done(self) -> int:
        """Shards that are complete."""
        return len(self.files.keys() - {INDEX, HEAD})

    def write(self, folder: Path) -> None:
        """Puts the manifest into place, all or nothing."""
        self.files = dict(sorted(self.files.items()))
        write_json(folder / MANIFEST, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder.

        Raises:
            StoreError: there is none, it is damaged, or of another format.
        """
        path = folder / MANIFEST
        if not path.exists():
            raise StoreError(f"{folder} holds no teacher store: there is no {MANIFEST}; write one with kdx cache")
        try:
            values = read_json(path, f"remove {folder} and write the store again")
        except DamagedError as error:
            raise StoreError(str(error)) from error
        found = values.get("format")
        if found != FORMAT:
            raise StoreError(
                f"{path} has format {found!r}, this kdx reads {FORMAT}; write the store again with kdx cache, or "
                "read it with the version of kdx that wrote it"
            )
        try:
            files = {name: FileEntry(**entry) for name, entry in values.pop("files").items()}
            if strange := [name for name in files if not _FILE.fullmatch(name)]:
                raise ValueError(f"no store has a file {strange[0]!r}")
            return cls(**values, files=files)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise StoreError(f"{path} is damaged ({error}); remove {folder} and write the store again") from error

    def identity(self) -> dict[str, Any]:
        """The fields on which two runs of the writer must agree to write one store."""
        left_out = {"files", "kdx", "layouts", "shard_rows"}
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in left_out}


def verify_store(folder: Path) -> int:
    """Reads every file of a store, compares its checksum and returns the number of files; torch is not needed.

    Raises:
        StoreError: there is no store, or it names all files that are not what was written.
    """
    files = Manifest.read(folder).files
    wrong = [name for name, entry in files.items() if not _intact(folder / name, entry)]
    if wrong:
        raise StoreError(
            f"the store {folder} is damaged: {', '.join(wrong[:10])} {'...' if len(wrong) > 10 else ''}not as "
            "written; remove those files and run the same kdx cache again, it writes them anew"
        )
    return len(files)


def _intact(path: Path, entry: FileEntry) -> bool:
    return path.exists() and sha256_of(path) == entry.sha256


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"shard-{number:05d}.safetensors"


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Keys whose stored value is not the wanted one, as ``data.transform: stored A, here B``."""
    found = []
    for key, here in wanted.items():
        there = stored.get(key)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            found += differences(there, here, f"{prefix}{key}.")
        elif there != here:
            found.append(f"{prefix}{key}: stored {_short(there)}, here {_short(here)}")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 and " " not in text else text
