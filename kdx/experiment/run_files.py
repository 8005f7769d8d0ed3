"""The files of a run that are read again: their names, how they are read, and what to do if one is damaged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdx.errors import CheckpointError, DamagedError, FileError, nearest
from kdx.files import named, read_json, sha256_of
from kdx.seal import read_sealed_text
from kdx.stage_name import split_name

__all__ = [
    "check_files",
    "checksums",
    "entry_of",
    "read_environment",
    "read_model",
    "read_recipe",
    "read_result",
    "read_stopped",
    "read_summary",
    "weights_of",
]

RECIPE, SUMMARY, ENVIRONMENT = "recipe.yaml", "summary.json", "environment.json"
RESULT, MODEL, START = "result.json", "model.json", "start.safetensors"
METRICS, STOPPED = "metrics.jsonl", "stopped.json"
CODE = "code"
"""The folder with copies of the Python files that the recipe names; ``environment.json`` has their hashes."""
PAGE, PICTURE = "report.html", "report.png"


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a finished run.

    Raises:
        DamagedError: it is not as it was written.
        FileError: it cannot be read.
    """
    remedy = "remove it and resume the run, which makes it anew from the results of the stages"
    return read_json(folder / SUMMARY, remedy, stages=dict, files=dict)


def read_environment(folder: Path) -> dict[str, Any]:
    """The environment that a run was started in; raises as :func:`read_summary`."""
    return read_json(folder / ENVIRONMENT, "remove it and resume the run, which writes that of now")


def read_recipe(folder: Path) -> str:
    """The text of a run's recipe; raises as :func:`read_summary`."""
    remedy = "put back what was there; to run an edited recipe, copy it elsewhere and run it in a folder of its own"
    return read_sealed_text(folder / RECIPE, remedy)


def read_result(stage: Path) -> dict[str, Any]:
    """The result of a finished stage, from its folder; raises as :func:`read_summary`."""
    remedy = "remove it and resume the run, which ends this stage again"
    return read_json(stage / RESULT, remedy, validation=dict, test=dict, weights=str, files=dict)


def read_stopped(stage: Path) -> dict[str, Any] | None:
    """Why and where a stage was stopped by an observer, None where it was not; raises as :func:`read_summary`."""
    if not (stage / STOPPED).exists():
        return None
    return read_json(stage / STOPPED, f"remove it and resume the run, which goes on in {stage}", reason=str)


def entry_of(result: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The part of a stage's result about ``stage:model``: its ``weights`` and ``validation``; of a stage all of it.

    Raises:
        FileError: the stage handed on no such model.
    """
    stage, model = split_name(name)
    student = Path(result["weights"]).stem
    if model in (None, student):
        return result
    models: Mapping[str, Mapping[str, Any]] = result.get("models", {})
    if model not in models:
        raise FileError(f"stage {stage!r} handed on no model {model!r}; {nearest(str(model), [student, *models])}")
    return models[str(model)]


def weights_of(folder: Path, result: Mapping[str, Any], name: str) -> Path:
    """The trained weights that the result of a stage names, for the stage's student or for ``stage:model``.

    Raises:
        CheckpointError: they are not in the folder of the run.
        FileError: the stage handed on no such model.
    """
    path = Path(folder, entry_of(result, name)["weights"])
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(
            f"{folder / split_name(name)[0] / RESULT} names the weights {path}, which are not in the folder of the "
            "run, and a run reads no others by itself; copy them there, or start from them with teacher.weights"
        )
    return path


def read_model(stage: Path) -> dict[str, Any]:
    """The model that a stage's structure was made into; raises as :func:`read_summary`."""
    return read_json(stage / MODEL, again(stage), model=dict, start=bool)


def again(stage: Path) -> str:
    """The remedy for a damaged file of a stage that only its training makes, as the end of a sentence."""
    return f"remove the folder {stage} and resume the run, which runs this stage again"


def checksums(folder: Path, *paths: Path) -> dict[str, str]:
    """Name -> SHA-256 of those files of a folder that are there."""
    return {str(path.relative_to(folder)): sha256_of(path) for path in paths if path.exists()}


def check_files(folder: Path, files: Mapping[str, str], remedy: str) -> None:
    """Compares files with the :func:`checksums` that were taken when they were whole.

    Raises:
        DamagedError: one is missing, or not as it was.
        FileError: one cannot be read.
    """
    for name, digest in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise DamagedError(f"{folder} says that {path} is a file of its own, which lies elsewhere; {remedy}")
        with named(path):
            there = path.exists()
        if not there or sha256_of(path) != digest:
            found = "is damaged: it is not as it was written" if there else "is missing"
            raise DamagedError(f"{path} {found}; {remedy}")
