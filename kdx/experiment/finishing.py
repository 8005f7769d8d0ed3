"""A finished stage's student converted for use: who is asked for it, and what is measured of what they give."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdx.analysis.cost import measure_latency
from kdx.analysis.stored import count_parameters
from kdx.artifact import Artifact, FinishedStudent
from kdx.batch import Batch
from kdx.capture import call, unwrap
from kdx.errors import CountError, ExportError, KdxError, PluginError, StopRun
from kdx.files import sha256_of
from kdx.modes import evaluating, hold
from kdx.observers.dispatch import Observers
from kdx.ref import Ref
from kdx.students.config import parse_config
from kdx.students.edit import Edit
from kdx.tasks.heads import Heads
from kdx.training import evaluation

__all__ = ["ROLES", "finalise", "measure"]

ROLES = ("alone", "label-smoothing", "assistant", "distilled")
"""Roles of stages whose trained students are finished."""


def finalise(stage: FinishedStudent, student: nn.Module, model: Ref, observers: Observers) -> list[Artifact]:
    """Asks the edits that the student is made of, then the scheme, the plugins and the observers, for artifacts.

    Each of them gets a copy of the student of its own, on the CPU and in evaluation mode.

    Args:
        stage: that trained it.
        student: that was trained; it stays as it is.
        model: what it is built from.
        observers: of the stage.

    Raises:
        PluginError: one of them failed, gave something else, two things of one name, or files that are elsewhere.
        StopRun: one of them stopped the run.
    """
    found: list[Artifact] = []
    for edit in _edits(model):
        try:
            given = edit.finalise(_copied(student), stage)
        except (KdxError, StopRun):
            raise
        except Exception as error:
            raise PluginError(
                f"edit {edit.how!r} failed to finalise stage {stage.name}: {type(error).__name__}: {error}"
            ) from error
        found += _checked(given, f"edit {edit.how!r}", stage)
    for name, given in observers.finalise(stage, lambda: _copied(student)):
        found += _checked(given, f"observer {name!r}", stage)
    names = [artifact.name for artifact in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise PluginError(f"stage {stage.name} was given two artifacts named {twice!r}; name them differently")
    return found


def measure(
    artifact: Artifact, stage: FinishedStudent, student: nn.Module, splits: Mapping[str, Callable[[], Iterable[Batch]]]
) -> dict[str, Any]:
    """The metrics, the size and the latency of an artifact, as ``result.json`` has them.

    Args:
        artifact: given for the stage.
        stage: that trained the student.
        student: what the bits are counted for.
        splits: name -> the batches of it.

    Raises:
        ExportError: it cannot be run on them.
    """
    model = artifact.model if isinstance(artifact.model, nn.Module) else _Called(artifact.model)
    output = stage.task.read if isinstance(stage.task, Heads) else None
    result: dict[str, Any] = {}
    try:
        for split, batches in splits.items():
            result[split] = evaluation.evaluate(
                model, batches(), metrics=stage.task.metrics, device="cpu", output=output
            )
        with evaluating(model):
            latency, spread = measure_latency(lambda inputs: call(model, inputs), stage.example)
    except Exception as error:
        raise ExportError(f"artifact {artifact.name!r} of stage {stage.name} cannot be evaluated: {error}") from error
    size = sum(path.stat().st_size for path in artifact.files)
    try:
        parameters: int | None = count_parameters(student)
    except CountError:
        parameters = None
    return {
        "test": {},
        **result,
        "files": {str(path.relative_to(stage.folder)): sha256_of(path) for path in artifact.files},
        "bytes": size,
        "bits": 8 * size / parameters if parameters else None,
        "latency_ms": latency,
        "latency_spread_ms": spread,
    }


class _Called(nn.Module):
    """Anything that can be called, as a module."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


def _edits(model: Ref) -> list[Edit]:
    """The edits of a derived student that give artifacts."""
    config = model.options.get("config") if model.name == "derived" else None
    edits = parse_config(config).edits if config is not None else []
    return [edit for edit in edits if type(edit).finalise is not Edit.finalise]


def _copied(student: nn.Module) -> nn.Module:
    model = copy.deepcopy(unwrap(student)).to(torch.device("cpu"))
    hold(model)
    return model


def _checked(given: Any, by: str, stage: FinishedStudent) -> list[Artifact]:
    """The artifacts that one of those who were asked gave."""
    if given is None:
        return []
    found = []
    for artifact in [given] if isinstance(given, Artifact) or not isinstance(given, Iterable) else given:
        if not isinstance(artifact, Artifact):
            raise PluginError(
                f"{by} gave a {type(artifact).__name__} for stage {stage.name}; expected kdx.Artifact, several or None"
            )
        files = []
        for path in artifact.files:
            if not Path(path).is_file():
                raise PluginError(f"{by}: artifact {artifact.name!r}: {path} is no file; list the files written")
            inside = Path(path).resolve()
            if not inside.is_relative_to(stage.folder.resolve()):
                raise PluginError(
                    f"{by}: artifact {artifact.name!r}: {path} is not in the folder of the stage; write it to "
                    f"{stage.folder}, the folder of the stage that was handed over"
                )
            files.append(stage.folder / inside.relative_to(stage.folder.resolve()))
        found.append(replace(artifact, files=tuple(files)))
    return found
