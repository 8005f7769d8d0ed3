"""Runs a teacher over data and gives what is to be stored of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kdx import rng
from kdx.batch import Batch
from kdx.capture import LOGITS, Captured, Output, Taps
from kdx.errors import StoreError
from kdx.head import Head
from kdx.layout import Layout, UnknownLayout
from kdx.linear_logits import LinearLogits
from kdx.modes import evaluating
from kdx.store.content import Content
from kdx.store.fingerprint import input_digests
from kdx.store.reader import DIGESTS, LENGTHS
from kdx.store.sequences import is_sequence, places_of

__all__ = ["Source"]


class Source:
    """The teacher's encoded outputs for any positions of the data in any view.

    Args:
        teacher: the model.
        data: see :func:`kdx.store.write_store`, as all that follow.
        contents: what is stored, as written -> how.
        dtype: of the stored numbers.
        batch_size: samples in one forward pass.
        workers: loader processes.
        seed: of the sampled classes.
        output: the way to the logits in what the teacher returns, or the head that they are stored as.
        collate: puts items into a batch.
    """

    def __init__(
        self,
        teacher: nn.Module,
        data: Any,
        contents: Mapping[str, Content],
        dtype: torch.dtype,
        batch_size: int,
        workers: int,
        seed: int,
        output: Output,
        collate: Callable[[Sequence[Batch]], Any] | None,
    ) -> None:
        self.teacher, self.data, self.contents, self.dtype = teacher, data, contents, dtype
        self.batch_size, self.workers, self.seed, self.collate = batch_size, workers, seed, collate
        self.taps = Taps(teacher, [content.tap for content in contents.values()], output=output)
        indices = getattr(data, "indices", None)
        self.rows = torch.arange(len(data)) if indices is None else torch.as_tensor(indices, dtype=torch.int64)
        if len(self.rows) == 0:
            raise ValueError("data is empty; give at least one sample")
        self.owners: dict[str, str] = {}
        self.classes = 0
        self.layouts: dict[str, Layout | UnknownLayout] = {}
        self.ragged: list[str] | None = None  # not known before the first batch

    @property
    def head(self) -> Head | None:
        """The head whose hidden states are stored, None where logits are."""
        return self.taps.head

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Puts the teacher into evaluation mode; at the end it, the data's epoch and the random state are as before."""
        epoch = getattr(self.data, "epoch", 0)
        try:
            with rng.isolated(), evaluating(self.teacher), torch.no_grad():
                yield
        finally:
            if callable(getattr(self.data, "set_epoch", None)):
                self.data.set_epoch(epoch)

    def encode(self, view: int, positions: range) -> dict[str, Tensor]:
        """Stored name -> ``[len(positions), ...]`` on the CPU."""
        if callable(getattr(self.data, "set_epoch", None)):
            self.data.set_epoch(view)
        size = self.batch_size
        batches = [list(positions[start : start + size]) for start in range(0, len(positions), size)]
        device = next((parameter.device for parameter in self.teacher.parameters()), torch.device("cpu"))
        # a draw of its own for each view and place, whatever was written before
        key = (self.seed * 1_000_003 + view) * 1_000_003 + positions.start
        generator = torch.Generator().manual_seed(key % (1 << 63))
        parts: dict[str, list[Tensor]] = {}
        for wanted, item in zip(batches, self._loaded(batches), strict=True):
            batch = Batch.of(item)
            if batch.index is None or not torch.equal(batch.index.cpu(), self.rows[wanted]):
                raise ValueError(
                    "data must give each sample its index (kdx.Batch(inputs, targets, index)), the one in its "
                    "indices or else its position; wrap it in kdx.datasets.View"
                )
            captured = self.taps(batch.to(device).inputs)
            encoded = self._encode(captured, batch, generator) | {DIGESTS: input_digests(batch.inputs, batch.rows)}
            for name, value in encoded.items():
                parts.setdefault(name, []).append(value)
        return {name: _joined(name, values) for name, values in parts.items()}

    def _loaded(self, batches: list[list[int]]) -> Iterator[Any]:
        try:
            yield from DataLoader(self.data, batch_sampler=batches, num_workers=self.workers, collate_fn=self.collate)
        except RuntimeError as error:
            if "equal size" not in str(error):
                raise
            raise StoreError(
                "the samples are of different size and torch's own collate makes no batch of them; give collate=, the "
                "collate_fn of your loader, which pads them and says where in attention_mask"
            ) from error

    def _encode(self, captured: Captured, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Stored name -> rows on the CPU; those of sequences one after the other, and then how long they are."""
        logits = captured.response(LOGITS)
        assert isinstance(logits, Tensor | LinearLogits)
        self.classes = logits.shape[next(iter(self.contents.values())).axis(logits.dim())]
        self.layouts = captured.layouts
        encoded: dict[str, Tensor] = {}
        ragged, places = [], places_of(batch.inputs)
        for text, content in self.contents.items():
            found = {name: value.cpu() for name, value in content.encode(captured, self.dtype, generator).items()}
            for name, value in found.items():
                if len(value) != batch.rows:
                    raise StoreError(
                        f"{text}: {name.partition('.')[2]!r} has shape {list(value.shape)} for a batch of "
                        f"{batch.rows}; only what has samples along its first dimension can be stored"
                    )
                if is_sequence(value, places, content.layout(name, captured)):
                    ragged.append(name)
            self.owners |= dict.fromkeys(found, text)
            encoded |= found
        if self.ragged is None:
            self.ragged = ragged
        elif self.ragged != ragged:
            other = sorted({*ragged} ^ {*self.ragged})[0]
            raise StoreError(
                f"{self.owners[other]}: has one number for each token in one batch and not in another; give all "
                "batches the inputs of one form"
            )
        if ragged and places is not None:
            encoded |= {name: encoded[name][places] for name in ragged}
            encoded[LENGTHS] = places.sum(1).int()
        return encoded


def _joined(name: str, values: list[Tensor]) -> Tensor:
    """The rows of all batches."""
    shapes = {tuple(value.shape[1:]) for value in values}
    if len(shapes) > 1:
        shown = " and ".join(str([*shape]) for shape in sorted(shapes)[:2])
        raise StoreError(
            f"{name.partition('.')[2]!r} has the shape {shown} in different batches; what differs from sample to "
            "sample are sequences of tokens: [N, L, ...] for inputs [N, L], or an attention_mask of that shape"
        )
    return torch.cat(values)
