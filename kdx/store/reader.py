"""Reads a store: any samples in any order, straight from the files."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load
from torch import Tensor

from kdx.capture import LOGITS, Captured, Held, Provenance
from kdx.errors import StoreError
from kdx.layout import Layout, UnknownLayout, layout_from_json
from kdx.linear_logits import LinearLogits
from kdx.store.content import Content
from kdx.store.contents import parse
from kdx.store.hidden import Hidden, head_from
from kdx.store.manifest import HEAD, INDEX, FileEntry, Manifest, shard_name, verify_store
from kdx.store.provenance import SampledClasses, TopClasses, WithoutPadding
from kdx.store.sequences import check_lengths, padded, spread_over, stretches

__all__ = ["DIGESTS", "LENGTHS", "Store", "mapped"]

DIGESTS = "inputs.digest"
"""The hash of the inputs that the teacher saw, one of each sample and view."""

LENGTHS = "rows.lengths"
"""How many places each row of a file has, where it holds sequences."""

_DTYPES: dict[str, tuple[Any, torch.dtype]] = {
    "F16": (np.float16, torch.float16),
    "BF16": (np.int16, torch.bfloat16),  # numpy has no bfloat16
    "F32": (np.float32, torch.float32),
    "I16": (np.int16, torch.int16),
    "I32": (np.int32, torch.int32),
    "I64": (np.int64, torch.int64),
}


class Store:
    """A complete store of a teacher's outputs.

    Opening one reads the manifest and the lengths of the files, no outputs.

    When a sample of a shard is first asked for, the shard is compared with its checksum and memory-mapped; a batch
    copies its own rows only. So a store may be far larger than memory.

    Args:
        folder: written by :func:`kdx.store.write_store` or ``kdx cache``.

    Raises:
        StoreError: no store, one of another format, an incomplete one, a file missing or cut short.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = manifest = Manifest.read(self.folder)
        if not manifest.complete:
            raise StoreError(
                f"the store {self.folder} is incomplete: {manifest.done} of {manifest.shards} shards are written; run "
                "the same kdx cache again, it goes on from there"
            )
        for name, entry in manifest.files.items():
            path = self.folder / name
            size = path.stat().st_size if path.exists() else None
            if size != entry.bytes:
                found = "is missing" if size is None else f"has {size:,} bytes instead of {entry.bytes:,}"
                raise StoreError(f"{path} {found}; run the same kdx cache again, it rewrites damaged shards")
        self.contents = parse(manifest.what, manifest.class_dim)
        _check_intact(self.folder / INDEX, manifest.files[INDEX])
        self.index: Tensor = load((self.folder / INDEX).read_bytes())["index"]  # [rows], as the data set has them
        self._sorted, self._order = self.index.sort()
        self._heads: dict[torch.device, LinearLogits] = {}
        self._shards: dict[int, dict[str, tuple[npt.NDArray[Any], torch.dtype]]] = {}

    @property
    def views(self) -> int:
        """Number of stored views of each sample."""
        return self.manifest.views

    @property
    def taps(self) -> dict[str, tuple[str, ...]]:
        """Taps that can be read, as written -> concrete names."""
        patterns = {name: tuple(taps) for name, taps in self.manifest.patterns.items()}
        return {content.tap: patterns.get(content.tap, (content.tap,)) for content in self.contents.values()}

    @property
    def bytes(self) -> int:
        """Length of all files but the manifest."""
        return sum(entry.bytes for entry in self.manifest.files.values())

    @property
    def _sequences(self) -> set[str]:
        """The contents that hold something for each token."""
        return {self.manifest.tensors[name] for name in self.manifest.ragged}

    @property
    def _layouts(self) -> dict[str, Layout | UnknownLayout]:
        """The layouts of the stored features, as far as the teacher's modules said them when they were written."""
        said = self.manifest.layouts
        unsaid = UnknownLayout(f"the store {self.folder}, which does not say what its axes mean")
        features = (name for names in self.taps.values() for name in names if name != LOGITS)
        return {name: layout_from_json(said[name]) if name in said else unsaid for name in features}

    def read(self, index: Tensor, view: int = 0, places: Tensor | None = None) -> Captured:
        """The teacher's outputs for samples in one view.

        Args:
            index: rows of the data set, int64 ``[N]`` with N >= 1, in any order, on any device.
            view: 0 .. views - 1.
            places: of sequences, where the batch has their tokens, bool ``[N, L]``
                (:func:`kdx.store.sequences.places_of`); None: from 0 on, padded behind to the longest.

        Returns:
            fp32 tensors ``[N, ...]`` on the device of ``index``, of top and sampled classes
            :class:`kdx.ops.SparseTargets`, of hidden states :class:`kdx.LinearLogits`, whose tensor is made when it is
            first asked for. What is read back for padding is the same for all of it and means nothing.

        Raises:
            StoreError: a sample or the view is not in the store, sequences have other lengths, or a file is damaged or
                cannot be read.
        """
        stored, lengths = self._gather(index, view)
        if lengths is not None:
            if places is None:
                places = padded(lengths)
            else:
                check_lengths(places, lengths, index, self.folder)
            stored |= {name: spread_over(places, stored[name]) for name in self.manifest.ragged}
        manifest = self.manifest
        values: dict[str, Tensor] = {}
        held: dict[str, Held] = {}
        later: dict[str, Callable[[], Tensor]] = {}
        provenance: dict[str, tuple[Provenance, ...]] = {}
        for text, content in self.contents.items():
            parts = {name: stored[name] for name, owner in manifest.tensors.items() if owner == text}
            found: Held | None
            if isinstance(content, Hidden):
                head = self._head(index.device)
                states = parts["hidden.states"].to(index.device, head.weight.dtype)
                held[LOGITS] = found = replace(head, hidden=states)
                later[LOGITS] = found.dense
            elif (found := content.held(parts, manifest.classes, places)) is None:
                values |= {
                    name: value.to(index.device) for name, value in content.decode(parts, manifest.classes).items()
                }
            else:
                held[content.tap] = found.to(index.device)
                later[content.tap] = functools.partial(self._whole, content, parts, index.device)
            if content.temperature is not None:
                provenance[content.tap] = (SampledClasses(content.temperature),)
            if (temperature := content.tail_temperature(manifest.classes)) is not None:
                provenance[content.tap] = (TopClasses(frozenset([temperature]), held=True),)
            if places is not None and text in self._sequences and not bool(places.all()):
                provenance[content.tap] = (*provenance.get(content.tap, ()), WithoutPadding())
        return Captured(values, self.taps, provenance=provenance, layouts=self._layouts, held=held, later=later)

    def _head(self, device: torch.device) -> LinearLogits:
        """The teacher's output layer on a device, read when it is first asked for."""
        if device not in self._heads:
            _check_intact(self.folder / HEAD, self.manifest.files[HEAD])
            tensors = load((self.folder / HEAD).read_bytes())
            self._heads[device] = head_from(tensors, self.manifest.head or {}).to(device)
        return self._heads[device]

    def _whole(self, content: Content, parts: Mapping[str, Tensor], device: torch.device) -> Tensor:
        """The logits of all classes, for what cannot do with those that are stored."""
        return content.decode(parts, self.manifest.classes)[content.tap].to(device)

    def digests(self, index: Tensor, view: int = 0) -> Tensor:
        """The hashes of the inputs that the teacher saw; see :func:`kdx.store.fingerprint.input_digests`."""
        return self._gather(index, view, only=DIGESTS)[0][DIGESTS]

    def verify(self) -> int:
        """Reads every file, compares its checksum and returns the number of files.

        Raises:
            StoreError: names all files that are not what was written.
        """
        return verify_store(self.folder)

    def positions(self, index: Tensor) -> Tensor:
        """Positions of samples in the store, int64 ``[N]``.

        Raises:
            StoreError: one is not in it, or ``index`` is no list of samples.
        """
        if index.dim() != 1 or len(index) == 0:
            raise StoreError(
                f"index must be int64 [N] with N >= 1, got {list(index.shape)}; give the rows of at least one sample"
            )
        wanted = index.cpu().contiguous()
        at = torch.searchsorted(self._sorted, wanted).clamp(max=max(0, len(self._sorted) - 1))
        if missing := wanted[self._sorted[at] != wanted].tolist():
            raise StoreError(
                f"sample {missing[0]} is not in the store {self.folder}, which holds {len(self.index):,} samples; it "
                "was written for other rows. Write one for these with kdx cache"
            )
        return self._order[at]

    def _gather(self, index: Tensor, view: int, only: str | None = None) -> tuple[dict[str, Tensor], Tensor | None]:
        """Stored name -> the rows of samples, of sequences one after the other, and the lengths of those."""
        if not 0 <= view < self.views:
            raise StoreError(f"view {view} is not in the store {self.folder}, which has {self.views} (from 0)")
        positions = self.positions(index)
        size = self.manifest.shard_rows
        shards = positions // size
        found = []  # of each shard: which of the samples, their rows, its tensors
        for shard in sorted({*shards.tolist()}):
            here = (shards == shard).nonzero().flatten()
            tensors = self._shard(view * self.manifest.shards_per_view + shard)
            found.append((here, positions[here] - shard * size, tensors))
        lengths = None
        if self.manifest.ragged and not only:
            lengths = torch.empty(len(positions), dtype=torch.int64)
            for here, rows, tensors in found:
                lengths[here] = _taken(tensors[LENGTHS], rows).long()
            begins = lengths.cumsum(0) - lengths
        result: dict[str, Tensor] = {}
        for here, rows, tensors in found:
            in_order, in_file = here, rows
            if lengths is not None:
                in_order = stretches(begins[here], lengths[here])
                ends = _taken(tensors[LENGTHS], None).long().cumsum(0)
                in_file = stretches(ends[rows] - lengths[here], lengths[here])
            for name, tensor in tensors.items():
                if name == LENGTHS or ((name != only) if only else (name == DIGESTS)):
                    continue
                ragged = name in self.manifest.ragged
                part = _taken(tensor, in_file if ragged else rows)
                if name not in result:
                    count = int(lengths.sum()) if ragged and lengths is not None else len(positions)
                    result[name] = part.new_empty((count, *part.shape[1:]))
                result[name][in_order if ragged else here] = part
        return result, lengths

    def _shard(self, number: int) -> dict[str, tuple[npt.NDArray[Any], torch.dtype]]:
        if number not in self._shards:
            name = shard_name(number)
            self._shards[number] = mapped(self.folder / name, self.manifest.files[name])
        return self._shards[number]


def mapped(path: Path, entry: FileEntry) -> dict[str, tuple[npt.NDArray[Any], torch.dtype]]:
    """The tensors of a safetensors file (an 8-byte length, a JSON header, the numbers), mapped once it is checked.

    Raises:
        StoreError: it cannot be read, or its checksum is wrong.
    """
    _check_intact(path, entry)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: Mapping[str, Any] = json.loads(file.read(length))
    found: dict[str, tuple[npt.NDArray[Any], torch.dtype]] = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            dtype, torch_dtype = _DTYPES[tensor["dtype"]]
            start = 8 + length + tensor["data_offsets"][0]
            found[name] = (np.memmap(path, dtype, "r", start, tuple(tensor["shape"])), torch_dtype)
    return found


def _taken(tensor: tuple[npt.NDArray[Any], torch.dtype], rows: Tensor | None) -> Tensor:
    """Rows of a tensor in a file, copied; None: all."""
    values, dtype = tensor
    return torch.from_numpy(np.array(values if rows is None else values[rows.numpy()])).view(dtype)


def _check_intact(path: Path, entry: FileEntry) -> None:
    """Reads a whole file and compares its checksum: 20 ms for 32 MiB on a processor with instructions for SHA-256."""
    try:
        found = _sha256(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error}); check with kdx cache --verify {path.parent}") from error
    if found != entry.sha256:
        raise StoreError(
            f"{path} is damaged: not as written; remove it and run the same kdx cache again, it writes it anew"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
