"""The data files within the package."""

from __future__ import annotations

from importlib import resources

import numpy as np
import numpy.typing as npt

__all__ = ["check_split", "embedded_arrays", "lines"]


def check_split(split: str) -> None:
    """Raise ValueError unless ``split`` is ``"train"`` or ``"test"``."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test'; got {split!r}")


def embedded_arrays(file: str, *names: str) -> tuple[npt.NDArray[np.generic], ...]:
    """Arrays of ``kdx/data/<file>``, as ``kdx/data/README.md`` lists them."""
    with (
        resources.files("kdx").joinpath("data", file).open("rb") as opened,
        np.load(opened, allow_pickle=False) as archive,
    ):
        return tuple(archive[name] for name in names)


def lines(text: npt.NDArray[np.generic]) -> list[str]:
    """The lines of an array of bytes, uint8 ``[n]``."""
    return text.tobytes().decode("ascii").split("\n")
