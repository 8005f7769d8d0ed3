"""A teacher's outputs, read from a store instead of from the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from kdx.batch import IGNORE, Batch
from kdx.capture import LOGITS, Captured
from kdx.errors import CaptureError, StoreError
from kdx.responses import Responses
from kdx.sample_index import check_index
from kdx.store.fingerprint import describe, input_digests, teacher_hash
from kdx.store.manifest import IMPORTED, differences
from kdx.store.provenance import WithoutPadding
from kdx.store.reader import Store
from kdx.store.sequences import places_of
from kdx.teachers.base import Teacher

__all__ = ["Stored"]


class Stored(Teacher):
    """A teacher's outputs, read from a store by sample and view; no model runs.

    The view is the epoch modulo the store's views, a buffer, so that a resumed run goes on with the right one. The
    training data must show the same views: ``View(..., views=V)``. Whether they do is checked bit for bit on the first
    batch of every epoch, against the hashes of what the teacher saw.

    Sequences are read back padded as the batch has them (:func:`kdx.store.sequences.places_of`); one that is longer or
    shorter than the stored one is an error.

    Args:
        store: a :class:`kdx.store.Store` or its folder.
        teacher: the model that must have written the store, if at hand: weights and architecture are compared.
        data: the training data, to find out before the first batch whether the teacher saw other data.
        origin: see :func:`kdx.store.write_store`; compared likewise.

    Raises:
        StoreError: the store is incomplete, damaged, or of another teacher or other data; the message says what
            differs.

    Example:
        >>> import tempfile, torch, kdx
        >>> from kdx.datasets import Digits, ShiftFlip, View
        >>> from kdx.store import write_store
        >>> view = View(Digits("train"), range(100), transform=ShiftFlip(1, 0.0), views=3)
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = write_store(folder, net, view, views=3)
        ...     student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        ...     distil = kdx.Offline(student, Stored(store, data=view), knowledge={"kd": kdx.SoftTargets(4.0)})
        ...     run = kdx.fit(distil, torch.utils.data.DataLoader(view, 25), epochs=3, device="cpu")
        >>> run.step
        12
    """

    needs_index = True
    view: torch.Tensor

    def __init__(
        self,
        store: Store | str | Path,
        *,
        teacher: nn.Module | None = None,
        data: Any = None,
        origin: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.store = store if isinstance(store, Store) else Store(store)
        self.register_buffer("view", torch.zeros((), dtype=torch.int64))
        self._unchecked = True
        self.responses = Responses()
        manifest = self.store.manifest
        wrong = differences(manifest.data, {**(describe(data) if data is not None else {}), **(origin or {})}, "data.")
        if data is not None and getattr(data, "transform", None) is not None:
            views = getattr(data, "views", None)
            if views != manifest.views:
                wrong.append(f"views: stored {manifest.views}, the data have {views or 'new ones in every epoch'}")
        if teacher is not None and manifest.teacher["class"] == IMPORTED:
            wrong.append("teacher: stored what another program said, of a model that it does not name; leave it out")
        elif teacher is not None and teacher_hash(teacher) != manifest.teacher["hash"]:
            wrong.append(f"teacher: stored another {manifest.teacher['class']}, with other weights or layers")
        if wrong:
            raise StoreError(
                f"the store {self.store.folder} does not fit: {'; '.join(wrong)}. Write one for this teacher and these "
                "data with kdx cache, or take the teacher and the data that it was written with"
            )
        if data is not None and (indices := getattr(data, "indices", None)) is not None:
            self.store.positions(torch.as_tensor(indices))

    @override
    def tap(self, names: Iterable[str]) -> None:
        known = self.store.taps
        concrete = {name for taps in known.values() for name in taps}
        for name in names:
            if name not in known and name not in concrete:
                raise CaptureError(
                    f"tap {name!r} is not in the store {self.store.folder}, which holds {', '.join(sorted(known))}; "
                    f"write it with --what features:{name} beside the rest"
                )

    @override
    def bind(self, responses: Responses) -> None:
        self.responses = responses

    @override
    def epoch_start(self, epoch: int, epochs: int) -> None:
        self.view.fill_(epoch % self.store.views)
        self._unchecked = True

    @override
    def forward(self, batch: Batch) -> Captured:
        if batch.index is None:
            raise ValueError(
                "a stored teacher needs batch.index; let the data set yield kdx.Batch(inputs, targets, index)"
            )
        check_index("a stored teacher", batch.index, batch.rows, targets=batch.targets)
        view = int(self.view)
        places = places_of(batch.inputs)
        captured = self.store.read(batch.index, view, places)
        if self._unchecked:
            self._check(batch, batch.index, view)
            self._unchecked = False
        if WithoutPadding() in (said := captured.provenance.get(LOGITS, ())) and places is not None:
            row = self._predicted_from_padding(batch, places)
            sample = None if row is None else int(batch.index[row])
            captured.provenance[LOGITS] = (*(part for part in said if part != WithoutPadding()), WithoutPadding(sample))
        return captured

    def _predicted_from_padding(self, batch: Batch, places: torch.Tensor) -> int | None:
        """The first row that is taught something at a place of padding, None without one."""
        wanted = batch.targets
        if self.responses.taught is not None and isinstance(batch.inputs, Mapping):
            held = torch.as_tensor(batch.inputs[self.responses.taught]) != 0
            wanted = held.long().where(held, IGNORE)
        wanted = self.responses.aligned(wanted)
        if not isinstance(wanted, torch.Tensor) or wanted.shape != places.shape or wanted.is_floating_point():
            return None
        rows = ((wanted.cpu() != IGNORE) & ~places).any(1).nonzero().flatten()
        return int(rows[0]) if len(rows) else None

    def _check(self, batch: Batch, index: torch.Tensor, view: int) -> None:
        seen = self.store.digests(index, view)
        wrong = (seen != input_digests(batch.inputs, batch.rows)).nonzero().flatten()
        if len(wrong):
            raise StoreError(
                f"the student sees other inputs than the teacher saw: sample {int(index[wrong[0]])} in view {view} of "
                f"{self.store.views} ({len(wrong)} of {batch.rows} samples of this batch). The transform, its seed, "
                f"the data or the number of views differs; the store {self.store.folder} was written for "
                f"{self.store.manifest.data}. Write one for these data with kdx cache, or set "
                f"views={self.store.views} in the View"
            )
