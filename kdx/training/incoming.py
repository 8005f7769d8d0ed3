"""Batches as a loader gives them, looked at before they go to their device and a model sees them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdx.batch import Batch
from kdx.blame import blaming
from kdx.sample_index import check_index
from kdx.schemes.torch_losses import checks_of
from kdx.training.dataset_facts import dataset_labels

if TYPE_CHECKING:
    from kdx.training.run import Run

__all__ = ["Incoming", "holes", "leaves"]

_SHOWN = 5


class Incoming:
    """Checks the targets and the index of every batch where that waits for no device: on the CPU.

    Nothing is looked at until :meth:`learn` has told the width of the outputs: the first batch is tried by
    :class:`kdx.training.tryout.Tryout`.

    Args:
        run: its scheme says what it learns from, and whether something in it is stored by sample.
        train: the loader.
    """

    def __init__(self, run: Run, train: Iterable[Any]) -> None:
        self.run = run
        self.scheme = scheme = run.scheme
        self.checks = checks_of(scheme.task) if scheme.task_weight > 0 else None
        self.labels = dataset_labels(train)
        self.stored = any(getattr(part, "needs_index", False) for part in scheme.modules())
        self.width: Any = None

    def learn(self, width: Any, window: Iterable[Batch]) -> None:
        """Takes the width of the outputs, and checks the rest of the first window and all labels of the data set.

        Args:
            width: see :attr:`kdx.training.seen.Seen.width`.
            window: the micro-batches of the first step.

        Raises:
            ComponentError: a target that the task cannot mean; the message names it, and its sample.
        """
        if self.width is not None or width is None:
            return
        self.width = width
        window = list(window)
        for batch in window[1:]:
            self.look(batch)
        if self.checks is not None and self.labels is not None and _given(self.labels, window[0]):
            with blaming("the labels of the data set: the task", self.scheme.task):
                self.checks.check_values(self.labels, self.width)

    def look(self, batch: Batch) -> None:
        """Checks one batch.

        Raises:
            ComponentError: a target that the task cannot mean.
            ValueError: an index that names no sample, where something is stored by sample.
        """
        if self.width is None:
            return
        what = f"step {self.run.step + 1}: "
        if self.checks is not None and batch.targets is not None and _on_cpu(batch.targets):
            with blaming(f"{what}the task", self.scheme.task):
                self.checks.check_values(batch.targets, self.width)
        if self.stored and batch.index is not None:
            who = f"{what}{type(self.scheme).__name__}"
            check_index(who, batch.index, batch.rows, targets=batch.targets)


def holes(batch: Batch) -> str | None:
    """The rows of a batch in which an input is NaN, or infinite where it is the one input; None where there are none.

    An infinite number in one of several inputs may be a mask.
    """
    alone = isinstance(batch.inputs, Tensor)
    for name, tensor in leaves(batch.inputs):
        if not tensor.is_floating_point() or not tensor.dim() or len(tensor) != batch.rows:
            continue
        wrong = (~tensor.isfinite() if alone else tensor.isnan()).reshape(len(tensor), -1).any(1)
        rows = wrong.nonzero().flatten()
        if len(rows):
            numbers = rows if batch.index is None else batch.index[rows.to(batch.index.device)]
            shown = ", ".join(map(str, numbers[:_SHOWN].tolist())) + (", ..." if len(rows) > _SHOWN else "")
            what = "row" if batch.index is None else "sample"
            kind = "NaN or infinite" if alone else "NaN"
            return f"inputs{name} are {kind} in {len(rows)} of {batch.rows} rows ({what} {shown})"
    return None


def leaves(inputs: Any, name: str = "") -> list[tuple[str, Tensor]]:
    """Every tensor in the inputs of a batch, with its place: ``""``, ``"[0]"``, ``"['mask']"``."""
    if isinstance(inputs, Tensor):
        return [(name, inputs)]
    if isinstance(inputs, tuple | list):
        inputs = dict(enumerate(inputs))
    items = inputs.items() if isinstance(inputs, Mapping) else ()
    return [leaf for key, item in items for leaf in leaves(item, f"{name}[{key!r}]")]


def _given(labels: Tensor, batch: Batch) -> bool:
    """Whether the labels of the data set are those that it gives, and not changed on the way."""
    index, targets = batch.index, batch.targets
    if index is None or not isinstance(targets, Tensor) or targets.dtype != torch.int64 or targets.shape != index.shape:
        return False
    known = index.cpu()
    if len(known) and not 0 <= int(known.min()) <= int(known.max()) < len(labels):
        return False
    return torch.equal(labels[known], targets.cpu())


def _on_cpu(targets: Any) -> bool:
    if isinstance(targets, Tensor):
        return targets.device.type == "cpu"
    items = targets.values() if isinstance(targets, Mapping) else targets if isinstance(targets, tuple | list) else ()
    return all(_on_cpu(item) for item in items)
