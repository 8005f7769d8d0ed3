"""A batch: inputs, targets and the index of every sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdx.inference import usable

__all__ = ["IGNORE", "Batch", "Sight"]

IGNORE = -100
"""Target of a sample without a label, as in :func:`torch.nn.functional.cross_entropy`."""


class Batch(NamedTuple):
    """Inputs, targets and sample indices of one step; a named tuple, which data loaders can collate, pin and move.

    Args:
        inputs: a tensor ``[N, ...]``, or a tuple or mapping of them, passed to the model as ``model(x)``,
            ``model(*x)`` or ``model(**x)``.
        targets: labels ``[N]`` int64 (``-100``: no label), or whatever the task loss takes; None without labels.
        index: ``[N]`` int64, position of each sample in its data set; needed by whatever is stored per sample.
        views: name -> other inputs of the same samples, each as ``inputs`` may be: a weaker augmentation, another
            resolution, another tokenisation. A teacher or a peer with ``view="weak"`` sees those of that name.
    """

    inputs: Any
    targets: Any = None
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index, which nothing here needs
    views: Mapping[str, Any] = {}  # a named tuple's default, never changed

    @classmethod
    def of(cls, value: Any) -> Batch:
        """Reads what data loaders give: a Batch, ``(inputs, targets[, index[, views]])`` or a mapping with ``labels``.

        Of a mapping ``index`` and ``views`` are its own, if it has them, and the rest are the inputs.

        Tensors made under ``torch.inference_mode`` are cloned, as no gradient can be computed with them.

        Raises:
            TypeError: for anything else.
        """
        value = usable(value)
        if isinstance(value, Batch):
            return value
        if isinstance(value, tuple | list) and len(value) in (2, 3, 4):
            return cls(*value)
        if isinstance(value, Mapping):
            inputs = dict(value)
            targets = next((inputs.pop(key) for key in ("labels", "label", "targets") if key in inputs), None)
            index, views = inputs.pop("index", None), inputs.pop("views", None)
            return cls(inputs, targets, index, views or {})
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

    def seen(self, view: Sight) -> Batch:
        """The batch as a model sees it: with the inputs of a view.

        Args:
            view: name of one of :attr:`views`; a function of the batch that gives the inputs; None: the inputs as they
                are.

        Raises:
            ValueError: the batch has no such view.

        Example:
            >>> batch = Batch(torch.ones(2, 3), views={"weak": torch.zeros(2, 3)})
            >>> batch.seen("weak").inputs.sum().item(), batch.seen(lambda batch: -batch.inputs).inputs.sum().item()
            (0.0, -6.0)
        """
        if view is None:
            return self
        if callable(view):
            return self._replace(inputs=view(self))
        if view not in self.views:
            known = f"the views {', '.join(map(repr, self.views))}" if self.views else "no views"
            raise ValueError(
                f"a model is to see the view {view!r}, and the batch has {known}; let the data set yield "
                f"kdx.Batch(inputs, targets, index, views={{{view!r}: ...}}), or give a function of the batch"
            )
        return self._replace(inputs=self.views[view])

    def at(self, rows: slice | Tensor) -> Batch:
        """Some of its samples, of every tensor in inputs, targets, index and views.

        A tensor of another length than there are samples, such as the lengths of packed documents, stays whole.
        """
        size = None if self.inputs is None else self.rows

        def take(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[rows] if size is None or (value.dim() and len(value) == size) else value
            if isinstance(value, Mapping):
                return {key: take(item) for key, item in value.items()}
            if isinstance(value, tuple | list):
                return type(value)(take(item) for item in value)
            return value

        return Batch(take(self.inputs), take(self.targets), take(self.index), take(self.views))

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

        return Batch(move(self.inputs), move(self.targets), move(self.index), move(self.views))


Sight = str | Callable[[Batch], Any] | None
"""Which inputs of a batch a model sees: a view by name, a function of the batch, None: its ``inputs``."""
