"""Finished models: what a trained student is converted into for use, and the stage that it comes from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kdx.batch import Batch
from kdx.stage import Role, Rows
from kdx.tasks.base import Task

__all__ = ["Artifact", "FinishedStudent"]


@dataclass(frozen=True)
class Artifact:
    """A finished model: a student converted for use, as one of integers, an ONNX file or a compiled program.

    kdx evaluates it on the validation and the test rows, times it, and takes size and checksums of its files, so that
    the report tells of what is used beside what was trained.

    Args:
        name: of the form, in kebab-case, such as ``"onnx-int8"``; one stage has no two of a name.
        model: takes the inputs on the CPU, as the student does, and returns the outputs: a module, or anything else
            that can be called, such as a session of another runtime, loaded from the files.
        files: what was written, in the folder of the stage (:attr:`FinishedStudent.folder`); at least one.

    Raises:
        ValueError: another form of name, no files, or a model that cannot be called.
    """

    name: str
    model: Callable[..., Any]
    files: Sequence[Path]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise ValueError(f"name of an artifact: expected kebab-case, as 'onnx-int8', got {self.name!r}")
        if not callable(self.model):
            raise ValueError(
                f"artifact {self.name!r}: model: expected what takes the inputs and returns the outputs, got "
                f"{type(self.model).__name__}; wrap it in a function"
            )
        if isinstance(self.files, str | Path) or not self.files:
            raise ValueError(
                f"artifact {self.name!r}: files: expected a list of the files that were written, got {self.files!r}"
            )


@dataclass(frozen=True)
class FinishedStudent:
    """A stage that has trained and exported its student, as :func:`kdx_finalise` and edits see it.

    Args:
        name: of the stage.
        role: of the stage, see :class:`kdx.Stage`.
        folder: of the stage, where files may be written; it exists.
        example: the inputs of one sample, as a batch on the CPU.
        task: the task of the experiment.
        rows: gives the batches of :meth:`batches`.
    """

    name: str
    role: Role
    folder: Path
    example: Any
    task: Task
    rows: Callable[[Any], Iterable[Batch]] = field(repr=False)

    def batches(self, rows: Rows | Literal["validation"] = "few") -> Iterable[Batch]:
        """Rows to calibrate with, in order and without augmentation; see :class:`kdx.assistants.FinishedStages`.

        Args:
            rows: ``"few"``, those that the student was trained on; ``"all"``, ``"labelled"`` or ``"validation"``.
        """
        return self.rows(rows)
