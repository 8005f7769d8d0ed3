"""Inputs and targets as arrays in files of numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdx.datasets.array_preprocessing import ArrayPreprocessing, channel_statistics, read_arrays
from kdx.datasets.embedded import check_split
from kdx.datasets.held_out import rows_of_split
from kdx.errors import nearest

__all__ = ["NpzArrays"]


class NpzArrays(Dataset[tuple[Tensor, Any]]):
    """Arrays of inputs ``[N, ...]`` and targets ``[N, ...]`` in ``.npz`` files; nothing pickled is read.

    Inputs become float32, or int64 with ``vocabulary``. Targets of whole numbers or truth values become int64: classes;
    of floating point float32: quantities, or 0 and 1 for each label.

    Args:
        split: ``"train"`` or ``"test"``.
        file: the ``.npz`` file of the training rows.
        test: that of the test rows, or the share of the rows of ``file`` held out for the test, between 0 and 1; the
            same rows in every run.
        inputs: name of the array of inputs in the files.
        targets: name of the array of targets.
        layout: order of the axes, ``as-is``, ``NHWC`` or ``NHW``; see :class:`kdx.datasets.ArrayPreprocessing`.
        divisor: that whole numbers are divided by, such as 255.
        vocabulary: inputs are token numbers below this.
        normalise: subtract the mean of the training rows and divide by their standard deviation, by channel.
        classes: names of the classes; None numbers them.
        preprocessing: that of a trained model, in the place of layout, divisor, vocabulary and the training rows'
            statistics.

    Attributes:
        targets: of all rows, int64 or float32 ``[N, ...]``.
        num_classes: of targets of whole numbers the largest of both splits and one, or as many as ``classes``; of
            others their last axis, or 1.
        input_shape: shape of one input.
        preprocessing: a :class:`kdx.datasets.ArrayPreprocessing`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an array is missing, or is not what it should be; file and array are named.
    """

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        *,
        file: str | Path,
        test: str | Path | float,
        inputs: str = "inputs",
        targets: str = "targets",
        layout: Literal["as-is", "NHWC", "NHW"] = "as-is",
        divisor: float | None = None,
        normalise: bool = False,
        vocabulary: int | None = None,
        classes: tuple[str, ...] | None = None,
        preprocessing: ArrayPreprocessing | None = None,
    ) -> None:
        check_split(split)
        if normalise and vocabulary is not None:
            raise ValueError("normalise: token numbers (vocabulary) are no quantities; remove one of the two")
        plain = preprocessing or ArrayPreprocessing(key=inputs, layout=layout, divisor=divisor, vocabulary=vocabulary)
        own = _read(Path(file), inputs, targets)
        if isinstance(test, str | Path):
            parts = {"train": own, "test": _read(Path(test), inputs, targets)}
        else:
            rows = {each: rows_of_split(own[1], test, each).numpy() for each in ("train", "test")}
            parts = {each: (own[0][chosen], own[1][chosen]) for each, chosen in rows.items()}
        where = f"{file if split == 'train' or not isinstance(test, str | Path) else test}: array {inputs!r}"
        train = plain.ordered(parts["train"][0], f"{file}: array {inputs!r}")
        if normalise and preprocessing is None:
            mean, std = channel_statistics(train)
            plain = plain.model_copy(update={"mean": tuple(mean), "std": tuple(std)})
        self.preprocessing = plain
        self.inputs = plain(parts[split][0], where)
        if self.inputs.shape[1:] != train.shape[1:]:
            raise ValueError(
                f"{where}: inputs of the shape {list(self.inputs.shape[1:])}, and the training rows have "
                f"{list(train.shape[1:])}"
            )
        self.targets = parts[split][1]
        self.num_classes = _width([part[1] for part in parts.values()], classes)
        self.classes = classes
        self.input_shape = tuple(self.inputs.shape[1:])
        if vocabulary is not None:
            self.vocabulary, self.model_options = vocabulary, ("vocabulary",)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """The input and the target of row ``index``."""
        target = self.targets[index]
        return self.inputs[index], int(target) if target.dim() == 0 and not target.is_floating_point() else target


def _read(file: Path, inputs: str, targets: str) -> tuple[npt.NDArray[Any], Tensor]:
    arrays = read_arrays(file)
    for option, name in (("inputs", inputs), ("targets", targets)):
        if name not in arrays:
            held = ", ".join(arrays) or "none"
            raise ValueError(f"{option}: {file} has no array {name!r}, it holds {held}; {nearest(name, arrays)}")
    if arrays[inputs].ndim == 0 or arrays[targets].ndim == 0 or len(arrays[inputs]) != len(arrays[targets]):
        raise ValueError(
            f"{file}: expected one target for each input, got {inputs} {list(arrays[inputs].shape)} and {targets} "
            f"{list(arrays[targets].shape)}"
        )
    return arrays[inputs], _targets(arrays[targets], f"{file}: array {targets!r}")


def _targets(values: npt.NDArray[Any], where: str) -> Tensor:
    if np.issubdtype(values.dtype, np.floating):
        found = torch.from_numpy(values.astype(np.float32))
        if len(bad := found.flatten(1 if found.dim() > 1 else 0).isinf().nonzero()):
            raise ValueError(f"{where}: row {int(bad[0][0])} is infinite; NaN is what has no target")
        return found
    if not (np.issubdtype(values.dtype, np.integer) or values.dtype == bool):
        raise ValueError(
            f"{where}: expected numbers, got {values.dtype}; number the classes, and name them in classes="
        )
    return torch.from_numpy(values.astype(np.int64))


def _width(targets: list[Tensor], classes: tuple[str, ...] | None) -> int:
    if targets[0].is_floating_point():
        return targets[0].shape[-1] if targets[0].dim() > 1 else 1
    largest = max(int(each.max()) for each in targets)
    if classes is not None and largest >= len(classes):
        raise ValueError(f"classes: {len(classes)} names, and the targets go to {largest}")
    return max(largest + 1, 2) if classes is None else len(classes)
