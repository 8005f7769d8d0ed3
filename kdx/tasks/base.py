"""The base of all tasks: what the outputs are, the loss on the targets, and the metrics that judge models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import default_collate

from kdx.batch import IGNORE, Batch
from kdx.responses import Responses

if TYPE_CHECKING:  # torchmetrics takes longer to import than torch
    from torchmetrics import Metric

__all__ = ["Task"]


class Task(ABC):
    """A task: what outputs and targets are, the loss that models are trained on and the metrics that judge them.

    Schemes take it as ``task=``. A subclass says in ``__call__`` what the loss is, in :meth:`count` what it is a mean
    over, in :meth:`metrics` how models are judged, in :attr:`responses` what the outputs are to knowledge, and in
    :meth:`check` which outputs and targets do not belong together. Its ``__init__`` takes options that a recipe can
    write.

    Example:
        >>> import torch
        >>> import kdx
        >>> task = kdx.make("task", "classification")
        >>> outputs, targets = torch.zeros(3, 2), torch.tensor([0, 1, -100])
        >>> round(task(outputs, targets).item(), 4), task.count(targets).item(), task.metric
        (0.6931, 2, 'accuracy')
    """

    metric: str
    """Name in :meth:`metrics` of the metric that selects the epoch and is reported."""
    label: str
    """The name of that metric in a report."""
    higher_is_better: bool = True
    """Whether more of that metric is better; False of an error."""
    share: bool = True
    """Whether that metric is a share of 1, which reports show in percent; False of an error in the targets' unit."""
    one_class: ClassVar[bool] = False
    """Whether outputs are logits ``[N, C]`` and targets class numbers, as prequential tests need them."""
    padded: ClassVar[bool] = False
    """Whether models may have more outputs than the data have classes, as vocabularies that are padded to some size."""
    takes_held: bool = False
    """Whether loss and metrics take outputs that are :class:`kdx.LinearLogits`, hidden states and a head."""
    relational: bool = False
    """Whether the loss compares samples with each other, so that parts of a batch do not add up to the whole."""

    @property
    def responses(self) -> Responses:
        """The form, the class axis and the void of the outputs, for the knowledge that compares them."""
        return Responses()

    def responses_at(self, tap: str) -> Responses | None:
        """The form, the class axis and the void of the outputs at a tap; None for a tap that is none of outputs."""
        return self.responses if tap == self.responses.tap else None

    @property
    def parts(self) -> tuple[Task, ...]:
        """The tasks of single outputs: itself, or those of all heads."""
        return (self,)

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

    def check(self, outputs: Tensor, targets: Any) -> None:
        """Checks that outputs and targets belong together: shapes, dtypes, values.

        It is called on the first batch and looks at values, so it may wait for a device; the base
        compares the numbers of rows.

        Args:
            outputs: those of the model for one batch.
            targets: of the same batch.

        Raises:
            ValueError: a shape or a value that the task cannot mean.
            TypeError: a dtype that it cannot mean.
        """
        if isinstance(targets, Tensor) and len(targets) != len(outputs):
            raise ValueError(
                f"{type(self).__name__}: expected targets for each of the {len(outputs)} rows of the outputs, got "
                f"{len(targets)}"
            )

    def check_values(self, targets: Any, width: Any) -> None:  # noqa: B027  # for most tasks all values are right
        """Checks the values of targets alone, in every batch that a loader gives on the CPU; the base takes them all.

        :func:`kdx.fit` calls it before a batch goes to its device, and the labels of a data set that says them (its
        ``targets``) go through it before the first step. :meth:`check` calls it too.

        Args:
            targets: as the data set gives them.
            width: of the outputs, on the axis of the classes; of several heads a mapping by name.

        Raises:
            ValueError: a value that the task cannot mean.
        """

    def labelled(self, targets: Any) -> Tensor:
        """Which elements of the targets have a label: bool, of their shape.

        The base takes ``-100`` in integers and NaN in floats for none.
        """
        if not isinstance(targets, Tensor):
            raise TypeError(f"{type(self).__name__} has to define labelled(targets) for {type(targets).__name__}")
        return ~targets.isnan() if targets.is_floating_point() else targets != IGNORE

    def hidden(self, targets: Tensor) -> Tensor:
        """Targets of this shape and dtype in which nothing has a label: ``-100`` in integers, NaN in floats."""
        return torch.full_like(targets, torch.nan if targets.is_floating_point() else IGNORE)

    def classes(self, targets: Any) -> Tensor | None:
        """The class of every row, int64 ``[N]``, by which splits and few labels are balanced; None without classes."""
        return None

    def dataset(self, data: Any) -> None:  # noqa: B027  # most tasks need nothing of it
        """Receives the data set of a recipe, before models are judged; an option of the task goes before it."""

    def collate(self, rows: Sequence[Batch]) -> Batch:
        """Puts rows of a data set, each a :class:`kdx.Batch` of one sample, into a batch; the base as torch does."""
        batch: Batch = default_collate(list(rows))
        return batch

    def example(self, row: Batch) -> Any:
        """The inputs of one row as a batch of one sample, for models to be tried and timed on."""
        return self.collate([row]).inputs

    def outputs(self, num_classes: int) -> int:
        """The width that the models' outputs have: their ``num_classes``.

        Args:
            num_classes: number of classes, labels or quantities of the data set.
        """
        return num_classes

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
