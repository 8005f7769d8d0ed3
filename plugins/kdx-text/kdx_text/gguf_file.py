"""Language models in GGUF files: their config, their weights in full precision, and their tokenizer."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdx_text.quietly import quietly

__all__ = ["Gguf", "read_gguf", "read_gguf_tokenizer"]


@dataclass(frozen=True)
class Gguf:
    """A language model read from a GGUF file.

    Args:
        config: of transformers.
        kind: the model's class of transformers.
        weights: float32, by the names of the model of transformers; one that is tied to another is left out.
    """

    config: Any
    kind: Any
    weights: Mapping[str, Tensor]


def read_gguf(path: Path) -> Gguf:
    """Reads a model from a GGUF file, quantised weights as the float32 numbers that they stand for.

    transformers finds out the config and the names. The last file that was read is kept as long as the process lives,
    as an experiment builds its teacher several times.

    Args:
        path: of a file that transformers knows the architecture of.

    Raises:
        ModuleNotFoundError: gguf is not installed.
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or of an architecture that transformers cannot read.
    """
    return _read(*_state(path))


def read_gguf_tokenizer(path: Path) -> Any:
    """The tokenizer of a GGUF file, of transformers; raises as :func:`read_gguf`."""
    return _read_tokenizer(*_state(path))


def _state(path: Path) -> tuple[str, int, int]:
    """A file with what tells that it was changed."""
    import importlib.util

    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(
            "a GGUF file is read with gguf, which is not installed: `pip install gguf`", name="gguf"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: there is no file {str(path)!r}; give a local one, nothing is downloaded")
    found = os.stat(path)
    return str(Path(path).resolve()), found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=1)
def _read(path: str, changed: int, size: int) -> Gguf:
    from transformers import AutoConfig, AutoModelForCausalLM

    place = {"gguf_file": Path(path).name, "local_files_only": True}
    try:
        with quietly(), redirect_stderr(StringIO()), torch.device("cpu"):  # a progress bar is written there
            config = AutoConfig.from_pretrained(str(Path(path).parent), **place)
            model: Any = AutoModelForCausalLM.from_pretrained(str(Path(path).parent), dtype=torch.float32, **place)
    except Exception as error:  # of any kind, as the file may hold anything
        raise ValueError(f"path: {path!r} cannot be read as a language model in GGUF: {error}") from error
    own = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}  # a tied weight once
    return Gguf(config, type(model), {name: each for name, each in model.state_dict().items() if name in own})


@functools.lru_cache(maxsize=1)
def _read_tokenizer(path: str, changed: int, size: int) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(Path(path).parent), gguf_file=Path(path).name, local_files_only=True)
    except Exception as error:  # of any kind, as the file may hold anything
        raise ValueError(f"tokenizer: {path!r} has none that transformers can read: {error}") from error
