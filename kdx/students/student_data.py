"""The data that a derivation may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from kdx.batch import Batch
from kdx.errors import StudentError
from kdx.tasks.heads import Heads
from kdx.training.evaluation import Measured, evaluate, metrics_of

__all__ = ["StudentData"]


class StudentData:
    """Training rows and the task that they are for: a derivation with ``needs_data`` decides by them.

    Args:
        loader: batches as :meth:`kdx.Batch.of` reads them. It is gone through several times and should give the same
            rows in the same order each time, so that the same student comes out.
        task: a :class:`kdx.Task`, or a loss ``(outputs, targets) -> scalar``.
        validation: rows that models are judged on, likewise; without them :meth:`evaluate` is refused.

    Raises:
        TypeError: a loader is an iterator, which can be gone through only once.

    Example:
        >>> import kdx
        >>> data = StudentData(kdx.testing.toy_batches(2), task=kdx.make("task", "classification"))
        >>> [batch.inputs.shape for batch in data.batches()]
        [torch.Size([12, 1, 8, 8]), torch.Size([12, 1, 8, 8])]
    """

    def __init__(
        self, loader: Iterable[Any], *, task: Callable[..., Any], validation: Iterable[Any] | None = None
    ) -> None:
        for name, each in (("loader", loader), ("validation", validation)):
            if isinstance(each, Iterator):
                raise TypeError(
                    f"{name}: expected batches that can be gone through several times, as a DataLoader or a list, got "
                    f"{type(each).__name__}; give list({name})"
                )
        self.task = task
        self._loader = loader
        self._validation = validation

    def batches(self) -> Iterator[Batch]:
        """The training batches, from the first one on."""
        return map(Batch.of, self._loader)

    def evaluate(self, model: nn.Module) -> Measured:
        """The metrics of the task on the validation rows; modes and random state stay as they are.

        Args:
            model: on the device that the rows are to go to.

        Returns:
            Metric -> value; which direction is better stands in ``higher_is_better``.

        Raises:
            StudentError: there are no validation rows.
        """
        if self._validation is None:
            raise StudentError(
                "this derivation judges models on held-out rows, and none were given: pass validation= to "
                "kdx.students.StudentData"
            )
        output = self.task.read if isinstance(self.task, Heads) else None
        return evaluate(model, self._validation, metrics=metrics_of(self.task), output=output)
