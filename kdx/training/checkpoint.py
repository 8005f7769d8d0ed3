"""Checkpoints and weights on disk, written to a temporary file and renamed: a kill leaves the last good one."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdx.capture import clean_name, unwrap
from kdx.errors import CheckpointError
from kdx.files import atomic_write

__all__ = ["export_weights", "latest_checkpoint", "load_checkpoint", "load_weights", "save_checkpoint"]

FORMAT = 1
KEEP = 2


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Writes ``folder/step-XXXXXXXX.pt`` and removes all but the newest two."""
    path = folder / f"step-{step:08d}.pt"
    atomic_write(path, lambda temporary: torch.save({"format": FORMAT, "step": step, **state}, temporary))
    for old in _checkpoints(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a folder, or None."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint; only tensors and plain values are accepted, no pickled code.

    Raises:
        CheckpointError: the file is damaged or of another format.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({error}); remove it to go back to an older one"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"checkpoint {path} has format {found!r}, this kdx reads {FORMAT}")
    return state


def export_weights(model: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a model's parameters and buffers as safetensors, under the names of the plain model.

    Tensors that share memory (tied weights) are written as separate copies.
    """
    save_tensors({clean_name(name): value for name, value in unwrap(model).state_dict().items()}, path, metadata)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors as safetensors, atomically; those that share memory as separate copies."""
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    atomic_write(path, lambda temporary: save_file(copies, temporary, dict(metadata or {})))


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads weights written by :func:`export_weights`.

    Raises:
        CheckpointError: the file is missing or damaged, or its tensors are not those of the model.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except Exception as error:  # safetensors raises its own error type, which is not public in every version
        raise CheckpointError(f"weights {path} cannot be read: {error}") from error
    try:
        unwrap(model).load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"weights {path} do not fit {type(unwrap(model)).__name__}: {error}") from error


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"))
