"""The training data as a stream that can be continued exactly where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from kdx import rng
from kdx.batch import Batch
from kdx.blame import blaming
from kdx.datasets.batch_maker import BatchMaker

__all__ = [
    "ResumableLoader",
    "blamed",
    "count_batches",
    "data_of",
    "first_batch",
    "looking_at",
    "made_of",
    "pass_size",
    "set_epoch",
    "windows",
]


class ResumableLoader:
    """Batches of a data loader, with a random state of their own.

    Shuffling and transforms draw from the global generators, as the training step (dropout) does. Here the data have
    their own copy of those generators, swapped in while a batch is fetched. So the data order depends on nothing the
    model does, and replaying an epoch's first k batches reaches exactly the state after k batches, whatever the
    loader is: that is how a run resumes in the middle of an epoch.

    A stream that keeps its own place (an ``IterableDataset`` without loader workers, or an iterable without a data set,
    that has ``state_dict`` and ``load_state_dict``) is not replayed but put back to its place. A stream that can
    do neither, a live feed, goes on with whatever comes next: everything else of the run is restored, the data differ.

    Of a :class:`kdx.datasets.BatchMaker` all this is said of the loader inside; only batches that are handed out are
    made, and what the maker keeps is part of the state.

    Args:
        loader: an iterable of what :meth:`kdx.Batch.of` reads; ``set_epoch`` of its sampler, batch sampler and data
            set is called with the epoch if they have it.
        device: where batches go.
        processes: how many take a batch each in a step.
        look: is shown every batch before it goes to its device.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        device: torch.device,
        processes: int = 1,
        *,
        look: Callable[[Batch], None] | None = None,
    ) -> None:
        self.look = look
        self.maker = loader if isinstance(loader, BatchMaker) else None
        self.loader = loader = made_of(loader)
        self.device = device
        self._now = rng.capture(cuda=False)
        self._epoch_start = self._now
        self._generators = _own_generators(loader)
        self._generators_start = [generator.get_state() for generator in self._generators]
        self._consumed = 0
        self._replay = 0
        self.batches = count_batches(loader)
        self._pass_size = pass_size(loader, processes)
        self._source = _stateful(loader)
        self._place: Any = None
        self._loaded: dict[str, Any] | None = None

    @property
    def resumes(self) -> bool:
        """Whether the next epoch was begun before and goes on."""
        return self._replay > 0

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch; after :meth:`load_state_dict` those that the interrupted epoch still owed."""
        set_epoch(self.loader, epoch)
        if not self._replay:
            self._epoch_start = self._now
            self._generators_start = [generator.get_state() for generator in self._generators]
        skip, self._replay, self._consumed, self._loaded = self._replay, 0, 0, None
        before = self._now, [generator.get_state() for generator in self._generators]
        if self._source is not None and self._place is not None:
            self._source.load_state_dict(self._place)
        with self._own_random_state():
            batches = iter(self.loader)
        if self._place is not None and skip:
            self._consumed, skip = skip, 0
            self._now = before[0]  # what a new iterator draws was drawn in the first part
            for generator, saved in zip(self._generators, before[1], strict=True):
                generator.set_state(saved)
        self._place = None
        while True:
            with self._own_random_state(), blaming("the data", data_of(self.loader)):
                item = next(batches, None)
            if item is None:
                return
            self._consumed += 1
            if self._consumed > skip:
                batch = Batch.of(item)
                if self.maker is not None:
                    batch = self._made(self.maker, batch)
                if self.look is not None:
                    self.look(batch)
                yield batch.to(self.device, non_blocking=True)

    def passes(self, *, before: int = 0) -> int:
        """Passes over its data that an endless stream had finished ``before`` batches ago; 0 for other data."""
        rows, samples = self._pass_size or (0, 1)
        return max(0, self._consumed - before) * rows // samples

    def finished_pass(self, batches: int, *, before: int = 0) -> bool:
        """Whether a pass was finished within the newest ``batches`` batches, ``before`` batches ago."""
        return self.passes(before=before) > self.passes(before=before + batches)

    def _made(self, maker: BatchMaker, batch: Batch) -> Batch:
        with rng.isolated(), blaming("the data", maker):
            return maker.make(batch)

    @contextmanager
    def _own_random_state(self) -> Iterator[None]:
        outside = rng.capture(cuda=False)
        rng.restore(self._now)
        try:
            yield
        finally:
            self._now = rng.capture(cuda=False)
            rng.restore(outside)

    def epoch_end(self) -> None:
        """Marks the epoch as trained on, whether all of its batches were handed out or the run ended before.

        Until this is called a checkpoint counts as one in the middle of the epoch, also after all of its batches.
        """
        if self._source is not None and self._place is not None:  # a resumed epoch of which nothing was left to train
            self._source.load_state_dict(self._place)
        self._consumed = self._replay = 0
        self._loaded = self._place = None

    def state_dict(self) -> dict[str, Any]:
        """The state from which :meth:`load_state_dict` goes on after the batches that were consumed."""
        return self._place_in_data() | ({} if self.maker is None else {"maker": self.maker.state_dict()})

    def _place_in_data(self) -> dict[str, Any]:
        if self._loaded is not None:
            return self._loaded  # nothing was handed out since
        mid_epoch = self._consumed > 0
        if self._source is not None:
            return {
                "global": self._now,
                "own": [generator.get_state() for generator in self._generators],
                "consumed": self._consumed,
                "place": self._source.state_dict(),
            }
        return {
            "global": self._epoch_start if mid_epoch else self._now,
            "own": self._generators_start if mid_epoch else [generator.get_state() for generator in self._generators],
            "consumed": self._consumed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to the start of the saved epoch and skips what it had consumed."""
        self._loaded = state
        self._now = self._epoch_start = state["global"]
        for generator, saved in zip(self._generators, state["own"], strict=True):
            generator.set_state(saved)
        self._generators_start = list(state["own"])
        self._replay = state["consumed"]
        self._place = state.get("place")
        if self.maker is not None:
            self.maker.load_state_dict(state["maker"])


def made_of(loader: Iterable[Any]) -> Iterable[Any]:
    """The loader whose batches others are made of; any other than a :class:`kdx.datasets.BatchMaker` as it is."""
    return loader.loader if isinstance(loader, BatchMaker) else loader


def _parts(loader: Any) -> list[Any]:
    batch_sampler = getattr(loader, "batch_sampler", None)
    found = [loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    return [part for i, part in enumerate(found) if part is not None and not any(part is other for other in found[:i])]


def _own_generators(loader: Any) -> list[torch.Generator]:
    found: list[torch.Generator] = []
    for part in _parts(loader):
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator) and not any(generator is other for other in found):
            found.append(generator)
    return found


def _epoch_owners(loader: Any) -> list[Any]:
    parts = [*_parts(loader), getattr(loader, "dataset", None)]
    return [part for part in parts if callable(getattr(part, "set_epoch", None))]


def set_epoch(loader: Iterable[Any], epoch: int) -> None:
    """Tells the epoch to the parts of a loader that count epochs: its sampler, batch sampler and data set."""
    for owner in _epoch_owners(loader):
        owner.set_epoch(epoch)


def count_batches(loader: Iterable[Any]) -> int | None:
    """Number of batches in an epoch now, or None where the loader cannot tell."""
    try:
        return len(loader)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        return None


def _stateful(loader: Any) -> Any:
    """The part of a loader that keeps its place in the data, or None."""
    data = getattr(loader, "dataset", loader)
    # loader workers, and the loaders of Accelerate, read ahead of what was handed out
    plain = type(loader) is DataLoader and loader.num_workers == 0 and isinstance(data, IterableDataset)
    methods = all(callable(getattr(data, name, None)) for name in ("state_dict", "load_state_dict"))
    return data if methods and (data is loader or plain) else None


def first_batch(loader: Iterable[Any]) -> Any:
    """The first batch of epoch 0; it comes again unless the stream neither restarts nor keeps its place."""
    if isinstance(loader, BatchMaker):
        kept = loader.state_dict()
        batch = Batch.of(first_batch(loader.loader))
        with rng.isolated(), blaming("the data", loader):
            made = loader.make(batch)
        loader.load_state_dict(kept)
        return made
    set_epoch(loader, 0)
    source = _stateful(loader)
    place = source.state_dict() if source is not None else None
    with blaming("the data", data_of(loader)):
        item = next(iter(loader))
    if source is not None:
        source.load_state_dict(place)
    return item


@contextmanager
def looking_at(loader: Iterable[Any], batches: int | None = None) -> Iterator[Iterator[Any]]:
    """Gives the first batches of a loader (None: all) and puts its random states and its place back afterwards."""
    generators, source = _own_generators(loader), _stateful(loader)
    drawn = [generator.get_state() for generator in generators]
    place = source.state_dict() if source is not None else None
    try:
        with rng.isolated():
            yield islice(blamed(loader), batches)
    finally:
        for generator, state in zip(generators, drawn, strict=True):
            generator.set_state(state)
        if source is not None:
            source.load_state_dict(place)


def blamed(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader; an error names its data set."""
    batches = iter(loader)
    while True:
        with blaming("the data", data_of(loader)):
            item = next(batches, None)
        if item is None:
            return
        yield item


def data_of(loader: Iterable[Any]) -> Any:
    """Returns the data set behind a loader, inside subsets and views; the loader itself where there is none."""
    loader = made_of(loader)
    data = getattr(loader, "dataset", loader)
    while isinstance(inner := getattr(data, "dataset", None), Dataset):
        data = inner
    return data


def pass_size(loader: Iterable[Any], processes: int = 1) -> tuple[int, int] | None:
    """Samples in one batch of all processes, and in one pass of an endless stream over its ``dataset``.

    None for a loader with a length, whose passes are its epochs, and where there is no such data set.
    """
    loader = made_of(loader)
    rows = getattr(loader, "batch_size", None)
    source = getattr(getattr(loader, "dataset", None), "dataset", None)
    if count_batches(loader) is not None or not rows or not isinstance(source, Sized):
        return None
    return rows * processes, len(source)


def windows(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Groups of up to ``size`` micro-batches, one optimizer step each; the last may be shorter."""
    while window := list(islice(batches, size)):
        yield window
