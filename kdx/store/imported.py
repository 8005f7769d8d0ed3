"""A store of top-k log-probabilities that another program wrote, as a server of a teacher too large to run here."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from kdx import __version__
from kdx.batch import IGNORE, Batch
from kdx.capture import LOGITS
from kdx.errors import StoreError
from kdx.store.content import DTYPES, class_dtype, rounded
from kdx.store.fingerprint import describe, input_digests
from kdx.store.logprob_files import Of, Place, Record, open_records
from kdx.store.manifest import IMPORTED, Manifest
from kdx.store.reader import DIGESTS, LENGTHS, Store
from kdx.store.sequences import places_of
from kdx.store.writer import complete_store, shard_rows_for

__all__ = ["import_topk"]


def import_topk(
    folder: str | Path,
    source: str | Path | Sequence[Any],
    data: Any,
    *,
    classes: int,
    k: int | None = None,
    temperature: float = 1.0,
    of: Of = "next",
    dtype: str = "fp16",
    collate: Callable[[Sequence[Batch]], Any] | None = None,
    origin: Mapping[str, str] | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Store:
    """Writes a store of top-k log-probabilities that are in a file, for the token sequences of a data set.

    A record is one sequence, in the order of the data or with its row as ``index``:

    - of vLLM, asked for with ``prompt_logprobs=K``: ``prompt_logprobs``, for each token a mapping of ids to
      ``{"logprob": ...}``, null for the first, as its server returns it (also as a choice of a completion and in a
      batch file) and as ``LLM.generate`` gives it; and ``prompt_token_ids``, if it is there. They are about the token
      that stands at their place, and its own is among them even if it is not of the top K;
    - ``ids`` and ``logprobs``, for each token a list; and ``tokens``, if it is there. They are about the token that
      comes next, or with ``of="own"`` about the token itself.

    Rows may know different numbers of classes. What is stored is read back as that of ``topk:K@T``
    (:func:`kdx.store.write_store`); a killed import goes on where it was.

    Args:
        folder: where to write.
        source: a file ``.jsonl`` (a record a line) or ``.parquet``, or the records themselves. A file runs no code.
        data: the data set whose rows the log-probabilities are of, as for :func:`kdx.store.write_store`.
        classes: size V of the vocabulary.
        k: how many classes to keep of each place, the likeliest; None: all that are there.
        temperature: that the log-probabilities were taken at; vLLM's are at 1 whatever it samples at.
        of: ``"next"`` or ``"own"``, see above.
        dtype: see :func:`kdx.store.write_store`.
        collate: likewise.
        origin: likewise.
        progress: likewise.

    Raises:
        StoreError: records that do not fit the data: other tokens, as of another tokenizer, another number of them,
            labelled tokens without log-probabilities, ids beyond the vocabulary, numbers that are no log-probabilities;
            or see :func:`kdx.store.write_store`.
        ImportError: a Parquet file without pyarrow.
        ValueError: an argument is wrong.

    Example:
        >>> import tempfile
        >>> from kdx.datasets import View
        >>> ids = torch.tensor([[5, 2, 7]])
        >>> data = View(torch.utils.data.TensorDataset(ids, ids))
        >>> said = [{"ids": [[2, 1], [7, 2], None], "logprobs": [[-0.1, -3.0], [-0.2, -2.0], None]}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = import_topk(folder, said, data, classes=9)
        ...     store.read(torch.tensor([0])).response("logits").ids[0, 0].tolist()
        [2, 1]
    """
    for name, value in (("classes", classes), ("k", k)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a number above 0, got {temperature}")
    if of not in ("next", "own"):
        raise ValueError(f"of must be 'next' or 'own', got {of!r}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    said = _Said(source, data, classes, k, float(temperature), of, DTYPES[dtype], collate)
    if callable(getattr(data, "set_epoch", None)):
        data.set_epoch(0)
    about = describe(data) | dict(origin or {})
    first = said.encode(0, range(min(256, len(said.rows))))
    wanted = Manifest(
        teacher={"class": IMPORTED, "hash": said.hash},
        data=about,
        data_hash=hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest(),
        what=[what := f"topk:{said.k}@{temperature:g}"],
        dtype=dtype,
        views=1,
        rows=len(said.rows),
        shard_rows=shard_rows_for(first, 1),
        seed=0,
        classes=classes,
        patterns={LOGITS: [LOGITS]},
        tensors=dict.fromkeys(_NAMES, what),
        ragged=list(_NAMES),
        kdx=__version__,
    )
    return complete_store(Path(folder), wanted, said, first[DIGESTS], progress)


_NAMES = ("topk.values", "topk.classes", "topk.tail")


class _Said:
    """The tensors to be stored of any rows, from the records of each."""

    head = None
    teacher: Any = None

    def __init__(
        self,
        source: str | Path | Sequence[Any],
        data: Any,
        classes: int,
        k: int | None,
        temperature: float,
        of: Of,
        dtype: torch.dtype,
        collate: Callable[[Sequence[Batch]], Any] | None,
    ) -> None:
        self.data, self.classes, self.temperature, self.dtype = data, classes, temperature, dtype
        self.collate = collate or default_collate
        self.records = open_records(source, of)
        indices = getattr(data, "indices", None)
        self.rows = torch.arange(len(data)) if indices is None else torch.as_tensor(indices, dtype=torch.int64)
        self.numbers, most = self._look_through()
        self.k = most if k is None else min(k, most)

    def _look_through(self) -> tuple[list[int], int]:
        """The record of every row of the data, and the largest number of classes at a place; makes the hash, too."""
        digest, most, rows = hashlib.sha256(), 0, self.rows.tolist()
        found: dict[int, int] = {}
        named = False
        for number in range(len(self.records)):
            record = self.records[number]
            named = named or record.index is not None
            if not named and number >= len(rows):
                break
            if record.index is None and number >= len(rows):
                raise StoreError(f"{record.where}: has no index, and others have; give each record one")
            row = rows[number] if record.index is None else record.index
            if row in found:
                raise StoreError(f"{record.where}: is of row {row}, as a record before it; write each row once")
            found[row] = number
            most = max([most, *(len(place) for place in record.places if place)])
            digest.update(repr((record.index, record.tokens, record.places)).encode())
        self.hash = digest.hexdigest()
        missing = [row for row in rows if row not in found]
        if missing or (not named and len(self.records) != len(rows)):
            none = f", none for row {missing[0]}" if missing else ""
            raise StoreError(
                f"there are {len(self.records)} records for the {len(rows)} rows of the data{none}; write one for "
                "each, in their order, or say in each which row it is of: index"
            )
        if not most:
            raise StoreError("no record holds a log-probability; ask the program that writes them for the top K")
        return [found[row] for row in rows], most

    def encode(self, view: int, positions: range) -> dict[str, Tensor]:
        """Stored name -> the numbers of some rows one after the other, and how long they are."""
        parts: dict[str, list[Tensor]] = {}
        for position in positions:
            for name, value in self._encoded(position).items():
                parts.setdefault(name, []).append(value)
        return {name: torch.cat(values) for name, values in parts.items()}

    def _encoded(self, position: int) -> dict[str, Tensor]:
        batch = Batch.of(self.collate([self.data[position]]))
        row = int(self.rows[position])
        if batch.index is None or batch.index.tolist() != [row]:
            raise ValueError(
                "data must give each sample its index (kdx.Batch(inputs, targets, index)), the one in its indices or "
                "else its position; wrap it in kdx.datasets.View"
            )
        ids, held = _ids(batch.inputs), places_of(batch.inputs)
        if ids is None or held is None or ids.shape != held.shape:
            raise StoreError(
                "log-probabilities of tokens belong to data of token ids [L], as input_ids, and these are none"
            )
        tokens = ids[0][held[0]].tolist()
        record = self.records[self.numbers[position]]
        self._check(record, tokens, row)
        self._check_labels(record, batch, held, row)
        self._check_documents(record, batch, held, row)
        n, known = len(tokens), [self._known(record, place) for place in range(len(tokens))]
        values = torch.full((n, self.k), -torch.inf, dtype=torch.float64)
        classes = torch.full((n, self.k), -1, dtype=torch.int64)
        for place, pairs in enumerate(known):
            if pairs:
                classes[place, : len(pairs)] = torch.tensor([key for key, _ in pairs])
                values[place, : len(pairs)] = torch.tensor([value for _, value in pairs], dtype=torch.float64)
        every = (classes >= 0).sum(1, keepdim=True) == self.classes
        tail = torch.log1p(-values.exp().sum(1, keepdim=True).clamp(max=1.0 - 2.0**-24))  # of fp32 at best
        tail = torch.where(every, -torch.inf, tail)
        return {
            "topk.values": rounded(self.temperature * values, self.dtype, LOGITS),
            "topk.classes": classes.to(class_dtype(self.classes)),
            "topk.tail": tail.float(),
            DIGESTS: input_digests(batch.inputs, 1),
            LENGTHS: torch.tensor([n], dtype=torch.int32),
        }

    def _check(self, record: Record, tokens: list[int], row: int) -> None:
        """Compares the tokens of a record with those of the data."""
        if record.tokens is not None and len(record.tokens) != len(record.places):
            raise StoreError(
                f"{record.where}: has {len(record.tokens)} tokens and log-probabilities for {len(record.places)}"
            )
        if len(record.places) != len(tokens):
            raise StoreError(
                f"{record.where}: has log-probabilities for {len(record.places)} tokens, and row {row} of the data has "
                f"{len(tokens)}; was it cut, given special tokens, or written with another tokenizer?"
            )
        theirs: list[int | None] = [None] * len(tokens) if record.tokens is None else [*record.tokens]
        if record.holds_own and record.tokens is None:
            before: list[Place] = [None, *record.places[:-1]]
            theirs = [token if not place or token in place else -1 for token, place in zip(tokens, before, strict=True)]
        for place, (token, other) in enumerate(zip(tokens, theirs, strict=True)):
            if other is not None and token != other:
                what = "is not among its classes" if other == -1 else f"is {other} there"
                raise StoreError(
                    f"{record.where}: is of other tokens than row {row} of the data, whose token {place}, {token}, "
                    f"{what}; was it written with another tokenizer, for other data or in another order?"
                )

    def _check_labels(self, record: Record, batch: Batch, held: Tensor, row: int) -> None:
        """Refuses labelled tokens of which nothing was written."""
        wanted = held[0][held[0]].clone()
        if isinstance(batch.targets, Tensor) and batch.targets.shape == held.shape:
            wanted = (batch.targets.cpu() != IGNORE)[0][held[0]]
        for place, entry in enumerate(record.places[:-1]):
            if not entry and wanted[place + 1]:
                raise StoreError(
                    f"{record.where}: has no log-probabilities for token {place + 1} of row {row}, which has a label; "
                    "write those of every token, or give it the label -100"
                )

    def _check_documents(self, record: Record, batch: Batch, held: Tensor, row: int) -> None:
        """Refuses what a server said of a row in which documents are packed: it saw them as one text."""
        positions = batch.inputs.get("position_ids") if isinstance(batch.inputs, Mapping) else None
        if not record.holds_own or not isinstance(positions, Tensor) or positions.shape != held.shape:
            return
        row_positions = positions.cpu()[0][held[0]]
        for place in ((row_positions[1:] <= row_positions[:-1]).nonzero().flatten() + 1).tolist():
            if record.places[place - 1]:
                raise StoreError(
                    f"{record.where}: says how likely token {place} of row {row} is after what stands before it, and "
                    "there a new document begins (position_ids), which the server did not know; write the documents "
                    "one by one (packed: false)"
                )

    def _known(self, record: Record, place: int) -> list[tuple[int, float]]:
        """The likeliest classes of a place with their log-probabilities."""
        entry: Place = record.places[place]
        if not entry:
            return []
        where = f"{record.where}, token {place}"
        if not 0 <= min(entry) <= max(entry) < self.classes:
            wrong = next(key for key in entry if not 0 <= key < self.classes)
            raise StoreError(
                f"{where}: names the class {wrong}, and there are {self.classes}; was it written with another "
                "tokenizer?"
            )
        largest, total = max(entry.values()), sum(map(math.exp, entry.values()))
        if largest > 1e-4 or total > 1 + 1e-2:
            raise StoreError(
                f"{where}: expected log-probabilities of the softmax over all classes, got {largest:.3g} as the "
                f"largest and {total:.3g} as the sum of the probabilities; are they logits, or a softmax of a few?"
            )
        return sorted(entry.items(), key=lambda pair: (-pair[1], pair[0]))[: self.k]


def _ids(inputs: Any) -> Tensor | None:
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else inputs
    ids = ids[0] if isinstance(ids, tuple | list) and ids else ids
    return ids.cpu() if isinstance(ids, Tensor) and ids.dim() == 2 and not ids.is_floating_point() else None
