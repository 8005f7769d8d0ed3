"""Checkpoints and weights on disk, written to a temporary file and renamed: a kill leaves the last good one.

Both show damage: the name of a checkpoint ends with the first digits of its SHA-256, as torch.hub names weights
(https://docs.pytorch.org/docs/stable/hub.html), so that file and checksum appear at once; weights carry a seal.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kdx.capture import clean_name, unwrap
from kdx.errors import CheckpointError, DamagedError, DamageWarning
from kdx.files import atomic_write, check_name, named, named_by_checksum
from kdx.seal import METADATA, check_tensors, read_metadata, seal_tensors
from kdx.training.torchao_tensors import flattened, is_torchao, rebuilt

__all__ = [
    "check_exportable",
    "export_weights",
    "latest_checkpoint",
    "load_checkpoint",
    "load_parts",
    "load_tensors",
    "newest_checkpoint",
    "packed_names",
    "save_checkpoint",
    "save_tensors",
]

FORMAT = 1


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Writes ``folder/step-XXXXXXXX-CHECKSUM.pt`` and keeps beside it the newest one of an earlier step.

    Raises:
        FileError: the disk is full, or the folder of the run is gone; the checkpoints from before are kept.
    """
    with named(folder, "made"):
        folder.mkdir(exist_ok=True)  # not its parents: the folder of a run that went missing is not made anew
    digest = hashlib.sha256()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            hashing: Any = _Hashing(file, digest)
            torch.save({"format": FORMAT, "step": step, **state}, hashing)
            if hashing.error:
                raise hashing.error

    path = folder / f"step-{step:08d}.pt"
    path = atomic_write(path, write, name=lambda: named_by_checksum(path.name, digest.hexdigest()))
    before = [each for each in _checkpoints(folder) if _step(each) < step]
    for old in _checkpoints(folder):
        if old not in (path, *before[-1:]):
            old.unlink(missing_ok=True)
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a folder, or None."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a folder that is not damaged, and what it holds; None if there is none at all.

    Damaged ones that are newer are removed. Going back changes no result, for a run goes on from the older one as it
    did before; a `DamageWarning` says so.

    Raises:
        DamagedError: all of them are damaged.
        CheckpointError: the newest that is not is of another format.
        FileError: one cannot be read, which is no damage.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(_checkpoints(folder)):
        try:
            state = load_checkpoint(path)
        except DamagedError as error:
            damaged[path] = str(error).partition(";")[0]
            continue
        for each, found in damaged.items():
            message = f"{found}; it is removed and the run goes on from the older {path.name}, which changes no result"
            warnings.warn(message, DamageWarning, stacklevel=2)
            each.unlink(missing_ok=True)
        return path, state
    if damaged:
        raise DamagedError(f"{next(iter(damaged.values()))}; no other is left, remove {folder} to train from the start")
    return None


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint; only tensors and plain values are accepted, no pickled code.

    Raises:
        DamagedError: it is not as it was written.
        CheckpointError: it is of another format.
        FileError: it cannot be read.
    """
    check_name(path, "remove it to go back to an older one")
    try:
        with named(path):
            state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"checkpoint {path} is not of this version of torch and kdx: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"checkpoint {path} has format {found!r}, this kdx reads {FORMAT}")
    return state


def export_weights(model: nn.Module, path: Path, about: Mapping[str, str] | None = None) -> None:
    """Writes a model's parameters and buffers as safetensors, under the names of the plain model.

    Tensors that share memory (tied weights) are written as separate copies. The metadata hold the version of kdx and a
    checksum, so that :func:`kdx.training.load_weights` notices damage.

    Quantised tensors of torchao are written in its own form, which other programs read too.

    Args:
        model: whose they are.
        path: of the file.
        about: further metadata.

    Raises:
        CheckpointError: see :func:`check_exportable`.
        FileError: the disk is full, or there is no such folder.
    """
    check_exportable(model)
    save_tensors({clean_name(name): value for name, value in unwrap(model).state_dict().items()}, path, about)


def check_exportable(model: nn.Module) -> None:
    """Checks that safetensors can hold all that a model's state dict holds.

    Raises:
        CheckpointError: an entry is no tensor, or one of a kind that they do not hold; it is named with what to do.
    """
    plain = unwrap(model)
    state = plain.state_dict()
    packed = packed_names(state)
    for name, value in state.items():
        if name in packed:
            what = "is packed by torch.ao.quantization for one backend"
            remedy = "write the weights before convert(), or the converted model as a program (torch.export, ONNX)"
        elif not isinstance(value, Tensor):
            what, remedy = f"is a {type(value).__name__}", "register what it holds as buffers, or leave it out"
        elif value.layout != torch.strided:
            what, remedy = f"is laid out as {value.layout}", "store it dense, as to_dense() gives it"
        elif is_traceable_wrapper_subclass(value) and not is_torchao(value):
            what, remedy = f"is a {type(value).__name__}", "store the plain tensors that it is made of"
        else:
            continue
        raise CheckpointError(
            f"weights of {type(plain).__name__}: {name} {what}, and safetensors hold plain tensors alone; {remedy}"
        )
    flattened({name: value for name, value in state.items() if is_torchao(value)})


def packed_names(state: Mapping[str, Any]) -> list[str]:
    """Entries of a state dict that torch.ao.quantization has packed, or that belong to such."""
    kinds = (tuple, torch.dtype, torch.ScriptObject)
    return [name for name, value in state.items() if isinstance(value, kinds) or getattr(value, "is_quantized", False)]


def save_tensors(tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, str] | None = None) -> None:
    """Writes tensors as safetensors with their checksum, atomically; those that share memory as separate copies."""
    parts, metadata = flattened(tensors)
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in parts.items()}
    data = seal_tensors(save(copies, METADATA | metadata | dict(about or {})))
    atomic_write(path, lambda temporary: temporary.write_bytes(data))


def load_tensors(path: Path, *, sealed: bool = False) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; quantised ones of torchao as they were.

    Args:
        path: of the file.
        sealed: whether it belongs to a run, so that one without a checksum is damaged; without it a file that another
            program wrote is read as it is.

    Raises:
        DamagedError: it is not as it was written.
        CheckpointError: it holds tensors of torchao, which is not installed.
        FileError: it cannot be read.
    """
    return rebuilt(*load_parts(Path(path), sealed=sealed), Path(path))


def load_parts(path: Path, *, sealed: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file as they lie in it, on the CPU, and its metadata.

    Args:
        path: see :func:`load_tensors`.
        sealed: see :func:`load_tensors`.

    Raises:
        DamagedError: it is not as it was written.
        FileError: it cannot be read.
    """
    check_tensors(
        path,
        f"remove the folder {path.parent} and resume the run, which runs this stage again"
        if sealed
        else "get it again from its source",
        sealed=sealed,
    )
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except Exception as error:  # safetensors raises its own error type, which is not public in every version
        raise DamagedError(f"{path} is damaged: {error}; get it again from its source") from error
    return tensors, read_metadata(path)


class _Hashing:
    """A file that torch writes to, hashed as it is written.

    An error of the system is kept for whoever asks: torch would make an error of its own of it, without the reason.
    """

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self.file, self.digest = file, digest
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
            self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        pass


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"), key=lambda path: (_step(path), path.name))


def _step(path: Path) -> int:
    found = re.match(r"step-([0-9]+)", path.name)
    return int(found[1]) if found else -1
