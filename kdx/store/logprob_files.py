"""Top-k log-probabilities that other programs wrote: JSON lines, Parquet, and what vLLM returns."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdx.errors import StoreError

__all__ = ["Of", "Place", "Record", "Records", "open_records"]

Of = Literal["next", "own"]
"""The token that the numbers at a token are about: the one after it, as a model's outputs are, or that token itself."""

Place = Mapping[int, float] | None
"""Class -> log-probability at one place; None: nothing was written there."""

IMPOSSIBLE = -9999.0
"""The log-probability that vLLM's server writes in place of -inf, which JSON has not."""


@dataclass(frozen=True, slots=True)
class Record:
    """The records of one sequence.

    Args:
        where: how messages name it.
        index: row of the data set; None: that of its place in the file.
        tokens: the sequence; None where it was not written.
        places: for each token what comes after it.
        holds_own: whether each token is among the classes that could have stood in its place, as vLLM writes it.
    """

    where: str
    index: int | None
    tokens: list[int] | None
    places: list[Place]
    holds_own: bool


class Records:
    """The records of a file, each read and parsed when it is asked for.

    Args:
        count: how many there are.
        read: gives the raw record of a number, and how messages name it.
        of: see :data:`Of`.
    """

    def __init__(self, count: int, read: Callable[[int], tuple[Any, str]], of: Of) -> None:
        self._count, self._read, self._of = count, read, of

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Record:
        """The record of a number.

        Raises:
            StoreError: it is not of a known form.
        """
        value, where = self._read(number)
        return _record(value, where, self._of)


def open_records(source: str | Path | Sequence[Any], of: Of = "next") -> Records:
    """Opens a file of log-probabilities, or a sequence of records.

    Args:
        source: a file ``.jsonl`` or ``.parquet``, or records in memory, such as the outputs of ``vllm.LLM.generate``.
        of: for records with ``ids`` and ``logprobs``.

    Raises:
        StoreError: there is no such file, it is of another kind, or empty.
        ImportError: a Parquet file without pyarrow.
    """
    if not isinstance(source, str | Path):
        return Records(len(source), lambda number: (source[number], f"record {number}"), of)
    path = Path(source)
    if not path.is_file():
        raise StoreError(f"there is no file {path}; give one of log-probabilities, .jsonl or .parquet")
    if path.suffix == ".parquet":
        return _parquet(path, of)
    if path.suffix in (".jsonl", ".ndjson"):
        return _json_lines(path, of)
    raise StoreError(f"{path}: expected log-probabilities as .jsonl (a record a line) or .parquet, got {path.suffix!r}")


def _json_lines(path: Path, of: Of) -> Records:
    starts = []
    with path.open("rb") as file:
        at = 0
        for number, line in enumerate(file):
            if line.strip():
                starts.append((at, number + 1))
            at += len(line)

    def read(number: int) -> tuple[Any, str]:
        start, line_number = starts[number]
        where = f"{path}, line {line_number}"
        with path.open("rb") as file:
            file.seek(start)
            line = file.readline()
        try:
            return json.loads(line), where
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{where}: no JSON ({error}); expected one record a line") from error

    return Records(len(starts), read, of)


def _parquet(path: Path, of: Of) -> Records:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"{path}: Parquet files are read by pyarrow; pip install 'kdx[parquet]'") from error
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path} is no Parquet file ({error})") from error
    groups = file.metadata.num_row_groups
    ends: list[int] = []
    for group in range(groups):
        ends.append((ends[-1] if ends else 0) + file.metadata.row_group(group).num_rows)
    kept: dict[int, list[Any]] = {}

    def read(number: int) -> tuple[Any, str]:
        group = next(each for each, end in enumerate(ends) if number < end)
        if group not in kept:
            kept.clear()
            try:
                kept[group] = file.read_row_group(group).to_pylist()
            except (pa.ArrowException, OSError) as error:
                raise StoreError(f"{path} is damaged ({error})") from error
        return kept[group][number - (ends[group - 1] if group else 0)], f"{path}, row {number}"

    return Records(file.metadata.num_rows, read, of)


def _record(value: Any, where: str, of: Of) -> Record:
    if isinstance(body := _field(_field(value, "response"), "body"), Mapping):
        value = body  # a line of an OpenAI batch file
    index = _field(value, "index")
    if index is not None and (not isinstance(index, int) or isinstance(index, bool)):
        raise StoreError(f"{where}: index: expected the row of the data set, a whole number, got {index!r}")
    choices = _field(value, "choices")
    if isinstance(choices, Sequence) and len(choices) == 1 and _field(value, "prompt_logprobs") is None:
        value = choices[0]  # a completion of one prompt
    elif isinstance(choices, Sequence) and len(choices) > 1 and _field(value, "prompt_logprobs") is None:
        raise StoreError(f"{where}: holds {len(choices)} choices; write one prompt a request, with n=1")
    tokens = next((found for name in _TOKENS if (found := _field(value, name)) is not None), None)
    if tokens is not None:
        tokens = [_whole(token, f"{where}: token {place}") for place, token in enumerate(_list(tokens, where))]
    own = _field(value, "prompt_logprobs")
    if own is not None:
        entries = [_of_pairs(entry, f"{where}, token {place}") for place, entry in enumerate(_list(own, where))]
        return Record(where, index, tokens, [*entries[1:], None], True)
    ids, logprobs = _field(value, "ids"), _field(value, "logprobs")
    if ids is None or logprobs is None:
        names = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise StoreError(
            f"{where}: holds no log-probabilities of every token: expected 'prompt_logprobs' (vLLM, asked for with "
            f"prompt_logprobs=K), or 'ids' and 'logprobs' with a list for each token, got {names[:200]}"
        )
    ids, logprobs = _list(ids, where), _list(logprobs, where)
    if len(ids) != len(logprobs):
        raise StoreError(f"{where}: 'ids' has {len(ids)} lists and 'logprobs' {len(logprobs)}; give one for each token")
    lists = enumerate(zip(ids, logprobs, strict=True))
    entries = [_of_lists(*both, f"{where}, token {place}") for place, both in lists]
    return Record(where, index, tokens, [*entries[1:], None] if of == "own" else entries, False)


_TOKENS = ("tokens", "prompt_token_ids", "input_ids")


def _of_pairs(entry: Any, where: str) -> Place:
    """The answer of vLLM for a token: class -> a number, or an object that has it as ``logprob``."""
    if entry is None:
        return None
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(entry, Mapping):
        pairs = entry.items()
    elif isinstance(entry, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in entry):  # of Parquet
        pairs = entry
    else:
        raise StoreError(f"{where}: expected a mapping of token ids to log-probabilities, got {str(entry)[:80]!r}")
    found = {}
    for key, given in pairs:
        logprob = given if isinstance(given, int | float) else _field(given, "logprob")
        number = _number(logprob, f"{where}, class {key!r}")
        found[_whole(key, f"{where}: a class")] = float("-inf") if number <= IMPOSSIBLE else number
    return found or None


def _of_lists(ids: Any, logprobs: Any, where: str) -> Place:
    if not ids and not logprobs:
        return None
    ids, logprobs = _list(ids, where), _list(logprobs, where)
    if len(ids) != len(logprobs):
        raise StoreError(f"{where}: has {len(ids)} classes and {len(logprobs)} log-probabilities; give one for each")
    found = {
        _whole(key, f"{where}: a class"): _number(value, f"{where}, class {key!r}")
        for key, value in zip(ids, logprobs, strict=True)
    }
    if len(found) < len(ids):
        raise StoreError(f"{where}: names a class twice; give each once")
    return found


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _list(value: Any, where: str) -> Sequence[Any]:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return value
    raise StoreError(f"{where}: expected a list, got {str(value)[:80]!r}")


def _whole(value: Any, what: str) -> int:
    try:
        return int(value) if not isinstance(value, float) or value.is_integer() else int("no")
    except (TypeError, ValueError) as error:
        raise StoreError(f"{what}: expected a token id, got {value!r}") from error


def _number(value: Any, what: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
        return float(value)
    raise StoreError(f"{what}: expected a log-probability, got {value!r}")
