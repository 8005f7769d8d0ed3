"""The base of all tasks: the loss on the targets, and the metric that says how good a model is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from kdx.responses import Responses

if TYPE_CHECKING:  # torchmetrics takes longer to import than torch
    from torchmetrics import Metric

__all__ = ["Task"]


class Task(ABC):
    """A task: the loss that models are trained on and the metric that judges them; schemes take it as ``task=``.

    A subclass says in ``__call__`` what the loss is, in :meth:`count` what it is a mean over, in :meth:`metrics` how
    models are judged. Its ``__init__`` takes options that a recipe can write.

    Example:
        >>> import torch
        >>> import kdx
        >>> task = kdx.make("task", "classification")
        >>> outputs, targets = torch.zeros(3, 2), torch.tensor([0, 1, -100])
        >>> round(task(outputs, targets).item(), 4), task.count(targets).item(), task.metric
        (0.6931, 2, 'accuracy')
    """

    metric: ClassVar[str]
    """Name in :meth:`metrics` of the metric that selects the epoch and is reported; more is better."""
    label: ClassVar[str]
    """The name of that metric in a report."""
    one_class: ClassVar[bool] = False
    """Whether outputs are logits ``[N, C]`` and targets class numbers, as prequential tests need them."""
    relational: ClassVar[bool] = False
    """Whether the loss compares samples with each other, so that parts of a batch do not add up to the whole."""

    @property
    def responses(self) -> Responses:
        """What the outputs are to the knowledge that compares them."""
        return Responses()

    @abstractmethod
    def __call__(self, outputs: Tensor, targets: Any) -> Tensor:
        """The loss: a mean over the elements that count, 0 with zero gradient where none does.

        Args:
            outputs: those of the model, any float dtype.
            targets: as the data set gives them.

        Returns:
            A scalar.
        """

    @abstractmethod
    def count(self, targets: Any) -> Tensor | float:
        """The number of elements that the loss is a mean over, or the sum of their weights.

        Micro-batches and ranks are combined by it, so it is read from the targets alone.
        """

    @abstractmethod
    def metrics(self, outputs: Tensor) -> Mapping[str, Metric]:
        """New metrics by name, made when the first outputs are there; import torchmetrics here and not before.

        ``update(outputs, targets)`` is called on each for every batch.
        """

    def outputs(self, num_classes: int) -> int:
        """The width that the models' outputs have: their ``num_classes``.

        Args:
            num_classes: number of classes of the data set.
        """
        return num_classes
