"""Writes a store shard by shard, each complete or absent, so that a kill or a full disk loses one shard's work."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import Tensor, nn

from kdx import __version__
from kdx.batch import Batch
from kdx.capture import Output
from kdx.errors import StoreError
from kdx.files import atomic_write, remove_leftovers
from kdx.head import Head
from kdx.layout import layout_to_json
from kdx.lock import sole_writer
from kdx.store.content import DTYPES
from kdx.store.contents import parse
from kdx.store.fingerprint import describe, teacher_hash
from kdx.store.hidden import Hidden, head_file, head_values
from kdx.store.manifest import HEAD, INDEX, MANIFEST, Manifest, differences, file_entry, shard_name
from kdx.store.reader import DIGESTS, Store, mapped
from kdx.store.source import Source

__all__ = ["complete_store", "shard_rows_for", "write_store"]

SHARD_BYTES = 32 << 20


def write_store(
    folder: str | Path,
    teacher: nn.Module,
    data: Any,
    *,
    what: str | Sequence[str] = "logits",
    views: int = 1,
    dtype: str = "fp16",
    batch_size: int = 256,
    workers: int = 0,
    seed: int = 0,
    shard_rows: int | None = None,
    output: Output = None,
    class_dim: int | None = None,
    collate: Callable[[Sequence[Batch]], Any] | None = None,
    origin: Mapping[str, str] | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Store:
    """Writes a teacher's outputs for every sample and view of a data set, or the part of them that is still missing.

    The teacher runs in evaluation mode without gradient and is left as it was. View v is the data set after
    ``set_epoch(v)``. After a kill or a full disk the same call goes on with the first shard that is missing or
    has the wrong length; the finished store is bitwise that of an unbroken run.

    Args:
        folder: where to write; created if it is missing.
        teacher: the model, on the device where it is to run.
        data: a map-style data set of :class:`kdx.Batch` items with their index, as :class:`kdx.datasets.View`.
        what: ``"logits"``, ``"hidden"`` or ``"hidden:TAP"`` (the last hidden states, and the teacher's head once),
            ``"topk:K[@T]"``, ``"sample:K[@T]"``, ``"features:TAP"``, or several, the logits in one form.
        views: number of views, one for each epoch.
        dtype: ``"fp16"``, ``"bf16"`` or ``"fp32"``. fp16 keeps three more bits than bf16; what it cannot hold is an
            error, not inf.
        batch_size: samples in one forward pass.
        workers: loader processes.
        seed: seed of the sampled classes.
        shard_rows: samples in one file, rounded up to whole batches; None takes about 32 MiB.
        output: see :class:`kdx.Taps`; for ``"hidden"`` a :class:`kdx.Head`, or None for a causal language model of
            Hugging Face, which says it itself.
        class_dim: axis of the classes in the logits; None: axis 1 of ``[N, C]`` and ``[N, C, d1, d2, ...]``, the last
            of ``[N, L, C]``.
        collate: puts items into a batch, as the ``collate_fn`` of a loader; one that pads sequences of different length
            gives the inputs an ``attention_mask``, so that each is stored without its padding. None: as torch does.
        origin: more about the data, as plain text by topic, to be compared when the store is used.
        progress: called with the number of finished shards and of all shards.

    Returns:
        The complete store.

    Raises:
        StoreError: the folder holds another store (the message says what differs), the disk is full, or the outputs
            cannot be stored.
        InUseError: another writer is in the folder.
        ValueError: an argument is wrong.

    Example:
        >>> import tempfile, torch
        >>> from kdx.datasets import Digits, View
        >>> view = View(Digits("train"), range(100))
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = write_store(folder, net, view, what="topk:3", dtype="fp32")
        ...     store.read(torch.tensor([7, 3]))["logits"].shape
        torch.Size([2, 10])
    """
    folder = Path(folder)
    contents = parse([what] if isinstance(what, str) else what, class_dim)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    for name, value in (("views", views), ("batch_size", batch_size), ("shard_rows", shard_rows)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if views > 1 and not callable(getattr(data, "set_epoch", None)):
        raise ValueError(f"views={views} needs data with set_epoch, as kdx.datasets.View; without it all views are one")
    hidden = next((content for content in contents.values() if isinstance(content, Hidden)), None)
    if hidden is not None:
        output = hidden.head_of(teacher, output)
    elif isinstance(output, Head):
        output = None  # the logits are made whole here, as the model does
    source = Source(teacher, data, contents, DTYPES[dtype], batch_size, workers, seed, output, collate)
    with source.opened():
        about = describe(data) | dict(origin or {})
        first = source.encode(0, range(min(batch_size, len(source.rows))))
        wanted = Manifest(
            teacher={"class": type(teacher).__qualname__, "hash": teacher_hash(teacher)},
            data=about,
            data_hash=hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest(),
            what=list(contents),
            dtype=dtype,
            views=views,
            rows=len(source.rows),
            shard_rows=shard_rows_for(first, batch_size, shard_rows),
            seed=seed,
            classes=source.classes,
            class_dim=class_dim,
            patterns={name: list(taps) for name, taps in source.taps.patterns.items()},
            tensors=dict(source.owners),
            ragged=list(source.ragged or ()),
            layouts={name: layout_to_json(layout) for name, layout in source.layouts.items()},
            head=None if source.head is None else head_values(source.head, teacher),
            kdx=__version__,
        )
        return complete_store(folder, wanted, source, first[DIGESTS], progress)


class Encoder(Protocol):
    """The tensors to be stored, for any rows and views of some data."""

    rows: Tensor

    @property
    def head(self) -> Head | None:
        """The head whose hidden states are stored, None where there is none."""

    @property
    def teacher(self) -> nn.Module:
        """The model that the head is in."""

    def encode(self, view: int, positions: range) -> dict[str, Tensor]:
        """Stored name -> what is stored of some rows."""


def complete_store(
    folder: Path, wanted: Manifest, source: Encoder, digests: Tensor, progress: Callable[[int, int], object]
) -> Store:
    """Writes what is missing of a store, and opens it.

    Args:
        folder: of the store.
        wanted: its manifest without files.
        source: what is stored.
        digests: hashes of the inputs of the first rows in the first view.
        progress: called with the number of finished shards and of all shards.
    """
    manifest = _continued(folder, wanted, source.rows, digests)
    progress(manifest.done, manifest.shards)
    if not manifest.complete:
        with ExitStack() as alone:
            with _space(folder, manifest):
                alone.enter_context(sole_writer(folder))
            # once more, for another writer may have gone on until now
            _write(folder, _continued(folder, wanted, source.rows, digests), source, progress)
    return Store(folder)


def shard_rows_for(first: Mapping[str, Tensor], batch_size: int, wanted: int | None = None) -> int:
    """How many rows a file takes: whole batches, about 32 MiB where nobody says how many."""
    if wanted is None:
        rows = len(first[DIGESTS])
        per_row = sum(value.numel() * value.element_size() for value in first.values()) / rows
        wanted = min(1 << 20, int(SHARD_BYTES / per_row))
        return max(1, wanted // batch_size) * batch_size
    # whole batches: a resumed store then runs the same batches as one written in one go
    return -(-wanted // batch_size) * batch_size


def _continued(folder: Path, wanted: Manifest, rows: Tensor, digests: Tensor) -> Manifest:
    """The manifest to go on with: the folder's own, less the files that are damaged, or the wanted one."""
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file; a store is a folder, take another name")
    if (folder / MANIFEST).exists():
        old = Manifest.read(folder)
        wrong = differences(old.identity(), wanted.identity())
        if INDEX in old.files and old.files[INDEX] != file_entry(_index(rows)):
            wrong.append("rows: stored others than those of the data")
        if wrong:
            raise StoreError(
                f"{folder} holds another store ({'; '.join(wrong)}); take another folder, or remove this one if "
                "nothing needs it"
            )
        old.files = {
            name: file
            for name, file in old.files.items()
            if (folder / name).exists() and (folder / name).stat().st_size == file.bytes
        }
        _compare_inputs(folder, old, digests, rows)
        old.layouts = wanted.layouts  # the same teacher; one that an older kdx wrote has none
        return old
    if folder.exists() and any(path.suffix == ".safetensors" for path in folder.iterdir()):
        raise StoreError(f"{folder} holds files but no {MANIFEST}; take another folder, nothing is overwritten")
    return wanted


def _compare_inputs(folder: Path, manifest: Manifest, digests: Tensor, rows: Tensor) -> None:
    """Refuses a store whose teacher saw other inputs, which the manifest need not show: it holds no settings of a
    transform.
    """
    first = shard_name(0)
    if first not in manifest.files:
        return
    stored = torch.from_numpy(mapped(folder / first, manifest.files[first])[DIGESTS][0][: len(digests)].copy())
    wrong = (stored != digests[: len(stored)]).nonzero().flatten()
    if len(wrong):
        raise StoreError(
            f"{folder} holds another store (its teacher saw another input as sample {int(rows[wrong[0]])}: the data or "
            "the transform have changed); take another folder, or remove this one if nothing needs it"
        )


def _write(folder: Path, manifest: Manifest, source: Encoder, progress: Callable[[int, int], object]) -> None:
    """Writes what is missing: the manifest, which makes the folder this store's, then file by file."""
    remove_leftovers([folder])
    if not (folder / MANIFEST).exists():
        with _space(folder, manifest):
            manifest.write(folder)
    if INDEX not in manifest.files:
        _write_file(folder, manifest, INDEX, _index(source.rows))
    if source.head is not None and HEAD not in manifest.files:
        _write_file(folder, manifest, HEAD, head_file(source.head, source.teacher))
    for number in range(manifest.shards):
        name = shard_name(number)
        if name in manifest.files:
            continue
        view, part = divmod(number, manifest.shards_per_view)
        start = part * manifest.shard_rows
        data = save(source.encode(view, range(start, min(start + manifest.shard_rows, manifest.rows))))
        _write_file(folder, manifest, name, data)
        progress(manifest.done, manifest.shards)


def _index(rows: Tensor) -> bytes:
    return save({"index": rows})


def _write_file(folder: Path, manifest: Manifest, name: str, data: bytes) -> None:
    """Puts a file into place, then its entry into the manifest."""
    with _space(folder, manifest):
        atomic_write(folder / name, lambda path: path.write_bytes(data))
        manifest.files[name] = file_entry(data)
        manifest.write(folder)


@contextmanager
def _space(folder: Path, manifest: Manifest) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        done = sum((folder / shard_name(n)).exists() for n in range(manifest.shards))
        raise StoreError(
            f"no space left for the store {folder} ({os.strerror(error.errno)}) after {done} of {manifest.shards} "
            "shards, which are kept; free some space and run the same again, it goes on from there"
        ) from error
