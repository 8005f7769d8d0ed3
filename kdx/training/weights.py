"""Weights that exist already, read from files of any usual form without running anything in them."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from kdx.capture import unwrap
from kdx.errors import CheckpointError, DamagedError
from kdx.files import named
from kdx.training.checkpoint import load_parts, load_tensors, packed_names
from kdx.training.torchao_tensors import fitted, form, rebuilt
from kdx.training.weights_names import Names, mismatch
from kdx.weights_file import WeightsFile

__all__ = ["load_weights", "read_tensors"]

ENTRIES = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")
"""Keys under which training scripts keep a state dict; those of Lightning, torchvision, many scripts, and timm."""
FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The files that a Hugging Face folder has its weights in; of several the first is read, as transformers does."""


def load_weights(
    model: nn.Module, source: str | PathLike[str] | Mapping[str, Any] | WeightsFile, *, sealed: bool = False
) -> None:
    """Loads weights into a model, all of its parameters and buffers unless ``skip`` leaves some out.

    Nothing in a file is run. Of tied parameters one in the file is enough; counters of batches that old files lack
    (``num_batches_tracked``) start from 0.

    Args:
        model: takes them.
        source: path of a file or folder (:func:`read_tensors` says which), or a mapping as ``{"file": path, "prefix":
            "module.", "rename": {"classifier": "fc"}, "skip": ["fc"], "entry": "state_dict_ema"}``: each key is
            explained at :class:`kdx.weights_file.WeightsFile`.
        sealed: whether it must be a file that kdx has written, so that one without a checksum is damaged.

    Raises:
        DamagedError: the file is not as it was written.
        FileError: it cannot be read.
        CheckpointError: it holds no state dict, or its names and shapes are not those of the model; at most ten are
            listed, and the map that would make them fit, if there is an obvious one. Or one of the two is quantised
            and the other is not, or in another way.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> trained, model = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "weights.pt")
        ...     torch.save({f"module.{name}": value for name, value in trained.state_dict().items()}, file)
        ...     load_weights(model, {"file": file, "prefix": "module."})
        >>> bool((model.weight == trained.weight).all())
        True
    """
    given, plain = WeightsFile.of(source), unwrap(model)
    _check_unpacked(given, plain)
    found = load_tensors(given.file, sealed=True) if sealed else read_tensors(given.file, given.entry)
    state = {name: each for name, each in plain.state_dict(keep_vars=True).items() if isinstance(each, Tensor)}
    names = Names(given)
    tensors = names.mapped(found)
    names.check_skip([*state, *tensors])
    for name in [name for name in state if names.skipped(name)]:
        tensors[name] = state[name].detach()
    _fill(tensors, state)
    if message := mismatch(given, found, tensors, state, type(plain).__name__):
        raise CheckpointError(message)
    _match_forms(given, tensors, state)
    try:
        plain.load_state_dict(tensors)
    except RuntimeError as error:  # of a module that reads its state in its own way
        raise CheckpointError(f"weights {given} do not fit {type(plain).__name__}: {error}") from error


def _check_unpacked(given: WeightsFile, model: nn.Module) -> None:
    if packed := packed_names(model.state_dict()):
        raise CheckpointError(
            f"weights {given}: {type(model).__name__} keeps {packed[0]} packed by torch.ao.quantization, into which no "
            "tensors of a file can be loaded; load them into the model before convert()"
        )


def _match_forms(given: WeightsFile, tensors: dict[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Checks that quantised tensors meet those that were quantised in the same way, and others plain ones."""
    for name, own in state.items():
        there, here = form(tensors[name]), form(own)
        if there == here:
            tensors[name] = tensors[name] if here is None else fitted(tensors[name], own)
            continue
        if there is None:
            what, remedy = "is not quantised", "load it before the model is quantised"
        elif here is None:
            what, remedy = "is quantised", "quantise the model in the same way before"
        else:
            what, remedy = f"is quantised as {there}", "quantise the model in the same way"
        kind = type(own).__name__ if here is None else here
        raise CheckpointError(f"weights {given}: {name} {what}, and that of the model is a {kind}; {remedy}")


def _fill(tensors: dict[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Adds what a file may lack: tied parameters whose other name it has, and counters of batches."""
    by_tensor = {id(value): tensors[name] for name, value in state.items() if name in tensors}
    for name, value in state.items():
        if name not in tensors and id(value) in by_tensor:
            tensors[name] = by_tensor[id(value)]
        elif name not in tensors and name.rpartition(".")[2] == "num_batches_tracked":
            tensors[name] = torch.zeros_like(value)


def read_tensors(path: str | PathLike[str], entry: str | None = None) -> dict[str, Tensor]:
    """The named tensors of a file or folder, on the CPU; nothing in it is run.

    Args:
        path: a ``.safetensors`` file; another file that ``torch.save`` wrote of a state dict, plain or under one of the
            usual keys (``state_dict``, ``model``, ``model_state_dict``, ``state_dict_ema``, ``model_ema``); the
            ``.index.json`` of weights in several files; or a folder of Hugging Face with one of these.
        entry: the key of a checkpoint that holds the state dict, if it has several.

    Raises:
        FileError: it cannot be read.
        DamagedError: it is not as it was written.
        CheckpointError: it holds a whole model, or no state dict.
    """
    path = Path(path)
    if path.is_dir():
        there = [path / name for name in FOLDER if (path / name).is_file()]
        if not there:
            raise CheckpointError(f"weights: the folder {path} has none of {', '.join(FOLDER)}; give the file itself")
        path = there[0]
    if path.name.endswith(".index.json"):
        return _sharded(path, entry)
    if path.suffix != ".safetensors":
        return _state_dict(path, entry)
    if entry is not None:
        raise CheckpointError(f"weights: {path} is safetensors, which have no entries; remove entry: {entry}")
    return load_tensors(path)


def _sharded(index: Path, entry: str | None) -> dict[str, Tensor]:
    """The tensors of all files that an index names; they lie beside it."""
    with named(index):
        text = index.read_text()
    try:
        places = json.loads(text)["weight_map"]
        files = sorted(set(places.values()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"weights: {index} is no index of weights: it has no weight_map") from error
    if strange := [name for name in files if not isinstance(name, str) or Path(name).name != name]:
        raise CheckpointError(f"weights: {index} names {strange[0]!r}; expected files beside it")
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {}
    for name in files:
        path = index.with_name(name)
        if path.suffix == ".safetensors" and entry is None:
            parts, further = load_parts(path)
            tensors, metadata = tensors | parts, metadata | further
        else:
            tensors |= read_tensors(path, entry)
    if lacking := sorted(places.keys() - tensors.keys()):
        raise CheckpointError(f"weights: {index} names {lacking[0]!r}, which {places[lacking[0]]} does not hold")
    return rebuilt(tensors, metadata, index)  # the parts of a quantised tensor may lie in several files


def _state_dict(path: Path, entry: str | None) -> dict[str, Tensor]:
    """The state dict that ``torch.save`` wrote, plain or as an entry of a checkpoint."""
    try:
        with named(path), path.open("rb") as file:
            _allow_torchao(file)
            held: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"weights: {path} holds more than tensors and plain values ({_first_line(error)}), as a whole model does, "
            "and nothing of it is run. Load it where you trust it, and write torch.save(model.state_dict(), 'w.pt')"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise DamagedError(
            f"{path} is damaged, or no file of torch.save: {_first_line(error)}; give safetensors or a state dict"
        ) from error
    if not isinstance(held, Mapping):
        raise CheckpointError(f"weights: {path} holds one {type(held).__name__}; expected a state dict, name -> tensor")
    return _of_entry(path, held, entry)


def _allow_torchao(file: BinaryIO) -> None:
    """Imports torchao if a state dict holds its tensors: it then tells torch which of its classes are plain values."""
    if not zipfile.is_zipfile(file):
        file.seek(0)
        return  # the older form of torch.save, from before torchao
    file.seek(0)
    strange = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    file.seek(0)
    if any(name.startswith("torchao.") for name in strange):
        with suppress(ModuleNotFoundError):
            import torchao.quantization  # noqa: F401


def _of_entry(path: Path, held: Mapping[Any, Any], entry: str | None) -> dict[str, Tensor]:
    mappings = [str(key) for key, value in held.items() if _is_state(value)]
    if entry is not None:
        if entry not in mappings:
            raise CheckpointError(f"weights: {path} has no state dict {entry!r} but {', '.join(mappings) or 'none'}")
        return dict(held[entry])
    if _is_state(held):
        return dict(held)
    usual = [name for name in ENTRIES if name in mappings]
    if len(usual) == 1:
        return dict(held[usual[0]])
    shown = ", ".join((usual or mappings)[:10])
    if not shown:
        raise CheckpointError(
            f"weights: {path} holds no state dict, name -> tensor, but {', '.join(map(repr, list(held)[:10]))}"
        )
    raise CheckpointError(
        f"weights: {path} has the state dict(s) {shown}; say which one is meant: {{file: {path}, entry: "
        f"{(usual or mappings)[0]}}}"
    )


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(each, Tensor) for each in value.values())


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
