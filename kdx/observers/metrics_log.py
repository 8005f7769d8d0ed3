"""The log of a run: one JSON object per line."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kdx.errors import DamagedError
from kdx.files import atomic_write, named
from kdx.hookspecs import hookimpl
from kdx.observers.epoch_row import logged

if TYPE_CHECKING:
    from kdx.losses import Losses
    from kdx.training.run import Run

__all__ = ["MetricsLog"]


class MetricsLog:
    """Appends one JSON object per logged step and per epoch to ``metrics.jsonl`` of the run's folder.

    When a run is resumed, rows after its checkpoint are dropped, so that the file ends as that of an unbroken run.
    """

    name = "metrics.jsonl"

    def __init__(self) -> None:
        self._file: TextIO | None = None

    @hookimpl
    def kdx_configure(self, run: Run) -> None:
        """Opens the file."""
        if run.folder is None:
            return
        path = run.folder / self.name
        rows = read_metrics(path) if run.step else []
        kept = [row for row in rows if row["step"] <= run.step and row["epoch"] <= run.epoch]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        if not path.exists() or path.read_bytes() != text.encode():
            atomic_write(path, lambda temporary: temporary.write_text(text))  # a kill now leaves all that was there
        with named(path, "written"):
            self._file = path.open("a", buffering=1)

    @hookimpl
    def kdx_step_end(self, run: Run, step: int, losses: Losses) -> None:
        """Writes the losses of a logged step."""
        if self._file and (run.logs(step) or losses.measured):
            row = {"step": step, "epoch": run.epoch, "lr": run.learning_rate, "loss": losses.total.item()}
            row |= {f"term/{name}": term.item() for name, term in losses.terms.items()} | losses.measured
            self._write(run, row)

    @hookimpl
    def kdx_epoch_end(self, run: Run, row: Mapping[str, Any]) -> None:
        """Writes the losses and metrics of an epoch."""
        if self._file:
            self._write(run, {"step": run.step, "epoch": run.epoch} | logged(row))

    @hookimpl
    def kdx_run_end(self, run: Run) -> None:
        """Closes the file."""
        if self._file and run.folder:
            file, self._file = self._file, None
            with named(run.folder / self.name, "written"):
                file.close()

    def _write(self, run: Run, row: Mapping[str, Any]) -> None:
        assert self._file is not None
        assert run.folder is not None
        with named(run.folder / self.name, "written"):
            self._file.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; a last line cut off by a kill is left out.

    Raises:
        DamagedError: another line is no row; the message names it.
        FileError: the file cannot be read.
    """
    if not path.exists():
        return []
    with named(path):
        *lines, last = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_row(line))
        except (ValueError, RecursionError) as error:
            raise DamagedError(
                f"{path} is damaged in line {number}, which is no row of metrics; remove that line, or the file: only "
                "the curves of the report are drawn from it"
            ) from error
    with contextlib.suppress(ValueError):
        rows.append(_row(last))
    return rows


def _row(line: bytes) -> dict[str, Any]:
    row = json.loads(line.decode())
    if not isinstance(row, dict) or not all(isinstance(row.get(key), int) for key in ("step", "epoch")):
        raise ValueError("a row has a step and an epoch")
    if not all(isinstance(value, int | float) for value in row.values()):
        raise ValueError("a row holds numbers")
    return row
