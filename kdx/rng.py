"""Random states: captured, restored, and kept apart for the data."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["capture", "isolated", "restore"]


def capture(*, cuda: bool = True) -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, with those of every CUDA device if asked for.

    The values are plain numbers, strings and tensors, so that ``torch.load(weights_only=True)`` reads them.
    """
    state: Any = np.random.get_state()  # the global one is what users use
    name, keys, position, has_gauss, cached = state
    version, words, gauss = random.getstate()
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.view(np.int32).copy()), int(position), int(has_gauss), cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if cuda and torch.cuda.is_available() else [],
    }


def restore(state: dict[str, Any]) -> None:
    """Puts back what :func:`capture` took."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().view(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def isolated() -> Iterator[None]:
    """Leaves the global generators as they were, whatever is drawn inside."""
    before = capture()
    try:
        yield
    finally:
        restore(before)
