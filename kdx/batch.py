"""A batch: inputs, targets and the index of every sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdx.inference import usable

__all__ = ["IGNORE", "Batch"]

IGNORE = -100
"""Target of a sample without a label, as in :func:`torch.nn.functional.cross_entropy`."""


class Batch(NamedTuple):
    """Inputs, targets and sample indices of one step; a named tuple, which data loaders can collate, pin and move.

    Args:
        inputs: a tensor ``[N, ...]``, or a tuple or mapping of them, passed to the model as ``model(x)``,
            ``model(*x)`` or ``model(**x)``.
        targets: labels ``[N]`` int64 (``-100``: no label), or whatever the task loss takes; None without labels.
        index: ``[N]`` int64, position of each sample in its data set; needed by whatever is stored per sample.
    """

    inputs: Any
    targets: Any = None
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index, which nothing here needs

    @classmethod
    def of(cls, value: Any) -> Batch:
        """Reads what data loaders give: a Batch, ``(inputs, targets[, index])`` or a mapping with ``labels``.

        Tensors made under ``torch.inference_mode`` are cloned, as no gradient can be computed with them.

        Raises:
            TypeError: for anything else.
        """
        value = usable(value)
        if isinstance(value, Batch):
            return value
        if isinstance(value, tuple | list) and len(value) in (2, 3):
            return cls(*value)
        if isinstance(value, Mapping):
            inputs = dict(value)
            targets = next((inputs.pop(key) for key in ("labels", "label", "targets") if key in inputs), None)
            index = inputs.pop("index", None)
            return cls(inputs, targets, index)
        shown = f"{type(value).__name__} of length {len(value)}" if hasattr(value, "__len__") else type(value).__name__
        raise TypeError(
            f"a batch must be a kdx.Batch, (inputs, targets), (inputs, targets, index) or a mapping with "
            f"'labels'; got {shown}. Wrap what the loader gives in kdx.Batch(inputs, targets, index)."
        )

    @property
    def rows(self) -> int:
        """Number of samples N."""
        first = self.inputs
        while not isinstance(first, Tensor):
            items = list(first.values()) if isinstance(first, Mapping) else first
            first = next(item for item in items if item is not None)
        return int(first.shape[0])

    def at(self, rows: slice) -> Batch:
        """Some of its samples, of every tensor in inputs, targets and index."""

        def take(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[rows]
            if isinstance(value, Mapping):
                return {key: take(item) for key, item in value.items()}
            if isinstance(value, tuple | list):
                return type(value)(take(item) for item in value)
            return value

        return Batch(take(self.inputs), take(self.targets), take(self.index))

    @property
    def labelled(self) -> int:
        """Number of samples that have a label: all of them unless integer targets hold ``-100``."""
        if self.targets is None:
            return 0
        if isinstance(self.targets, Tensor) and not self.targets.is_floating_point() and self.targets.dim() == 1:
            return int((self.targets != IGNORE).sum())
        return self.rows

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=non_blocking)
            if isinstance(value, Mapping):
                return {key: move(item) for key, item in value.items()}
            if isinstance(value, tuple | list):
                return type(value)(move(item) for item in value)
            return value

        return Batch(move(self.inputs), move(self.targets), move(self.index))
