"""Arrays of numpy as inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from kdx.datasets.preprocessing import Preprocessing

__all__ = ["ArrayPreprocessing", "channel_statistics", "read_arrays"]


class ArrayPreprocessing(Preprocessing):
    """Arrays: brought to kdx's order of axes, scaled, and normalised by channel.

    Args:
        key: of the inputs in an ``.npz`` file.
        layout: of the arrays: ``as-is``, ``NHWC`` (channels last) or ``NHW`` (one channel without an axis).
        divisor: that values are divided by, such as 255; None: as they are.
        mean, std: by the first axis of an input; empty: not normalised.
        vocabulary: inputs are token numbers below this, and stay whole numbers; None: numbers.
    """

    kind: Literal["array"] = "array"
    key: str = "inputs"
    layout: Literal["as-is", "NHWC", "NHW"] = "as-is"
    divisor: Annotated[float, Field(gt=0)] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    vocabulary: Annotated[int, Field(ge=1)] | None = None

    def ordered(self, arrays: npt.NDArray[Any], where: str) -> Tensor:
        """The inputs ``[N, ...]`` of an array, before they are normalised; float32, or int64 of token numbers.

        Raises:
            ValueError: the array has other dimensions, other numbers or values that are not finite; the row is named.
        """
        if arrays.dtype == object or not (np.issubdtype(arrays.dtype, np.number) or arrays.dtype == bool):
            raise ValueError(f"{where}: expected an array of numbers, got {arrays.dtype}")
        wanted = {"NHWC": 4, "NHW": 3}.get(self.layout)
        if arrays.ndim != wanted if wanted else arrays.ndim < 2:
            raise ValueError(
                f"{where}: expected {f'{self.layout}, {wanted} dimensions' if wanted else '[N, ...], a row each'}, got "
                f"{list(arrays.shape)}; layout= is as-is, NHWC or NHW"
            )
        if self.layout == "NHWC":
            arrays = arrays.transpose(0, 3, 1, 2)
        elif self.layout == "NHW":
            arrays = arrays[:, None]
        whole = not np.issubdtype(arrays.dtype, np.floating)
        if self.vocabulary is not None:
            if not whole or (arrays.size and not 0 <= int(arrays.min()) <= int(arrays.max()) < self.vocabulary):
                raise ValueError(f"{where}: expected token numbers 0 .. {self.vocabulary - 1}, got {_span(arrays)}")
            return torch.from_numpy(np.ascontiguousarray(arrays, dtype=np.int64))
        if whole and self.divisor is None:
            raise ValueError(
                f"{where}: whole numbers, {_span(arrays)}; say what they are: divisor=255 for pixels, divisor=1 for "
                "quantities, vocabulary=N for token numbers"
            )
        inputs = torch.from_numpy(np.ascontiguousarray(arrays, dtype=np.float32)) / (self.divisor or 1.0)
        if len(bad := (~inputs.flatten(1).isfinite()).any(1).nonzero()):
            raise ValueError(f"{where}: row {int(bad[0])} holds a value that is not finite ({len(bad)} such rows)")
        return inputs

    def __call__(self, arrays: npt.NDArray[Any], where: str) -> Tensor:
        """The inputs ``[N, ...]`` of an array; ``where`` names it in messages.

        Raises:
            ValueError: as :meth:`ordered`, or there are other channels than it is normalised for.
        """
        inputs = self.ordered(arrays, where)
        if not self.mean:
            return inputs
        if inputs.shape[1] != len(self.mean):
            raise ValueError(f"{where}: expected {len(self.mean)} channels, got {list(inputs.shape)}")
        shape = (1, -1, *[1] * (inputs.dim() - 2))
        return (inputs - torch.tensor(self.mean).reshape(shape)) / torch.tensor(self.std).reshape(shape)

    def read(self, file: Path) -> Iterator[tuple[str, Tensor]]:
        """The inputs of a file: all rows under ``key`` of an ``.npz``, or of the array in an ``.npy``.

        Raises:
            ValueError: the file has no such array, or one that does not fit.
        """
        arrays = read_arrays(file)
        found = arrays[""] if "" in arrays else arrays.get(self.key)
        if found is None:
            raise ValueError(f"{file}: there is no array {self.key!r}, only {', '.join(arrays)}")
        for row, each in enumerate(self(found, str(file))):
            yield f"{file}[{row}]", each


def read_arrays(file: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an ``.npz`` file by name, or the one of an ``.npy`` file under the name ``""``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of the two, or needs pickle, which could run code.
    """
    try:
        with Path(file).open("rb") as opened:
            loaded = np.load(opened, allow_pickle=False)
            return {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, numpy and the file system have many
        raise ValueError(f"{file} cannot be read as arrays of numpy: {error}") from error


def _span(arrays: npt.NDArray[Any]) -> str:
    shown = f"{arrays.dtype} {arrays.min()} .. {arrays.max()}" if arrays.size else f"{arrays.dtype}, none"
    return shown


def channel_statistics(inputs: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of inputs ``[N, C, ...]`` by channel; a channel without spread gets 1."""
    flat = inputs.transpose(0, 1).flatten(1).double()
    std = flat.std(1, correction=0)
    return flat.mean(1).tolist(), torch.where(std > 0, std, 1.0).tolist()
