"""Evaluation of a scheme's students on held-out data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdx import rng
from kdx.batch import IGNORE, Batch
from kdx.blame import blaming, explaining_lost_workers
from kdx.capture import LOGITS, Taps, call, logits_of, reader
from kdx.head import Head
from kdx.linear_logits import LinearLogits
from kdx.modes import evaluating
from kdx.schemes.base import Scheme
from kdx.schemes.task_count import is_by_element, responses_of
from kdx.tasks.classification import Classification
from kdx.training.batches import blamed
from kdx.training.incoming import holes

__all__ = ["Measured", "Metrics", "classification", "evaluate", "metrics_of", "output_for"]

Metrics = Callable[[Any], Mapping[str, Any]]
"""Gets the first logits (of several heads a mapping) and returns name -> ``torchmetrics.Metric``;
``update(logits, targets)`` is called on each.
"""


class Measured(dict[str, float]):
    """Metric name -> value, with the direction of every metric.

    Args:
        values: metric name -> value.
        higher_is_better: metric name -> whether more of it is better; None where the metric does not say.
    """

    def __init__(self, values: Mapping[str, float], higher_is_better: Mapping[str, bool | None]) -> None:
        super().__init__(values)
        self.higher_is_better = dict(higher_is_better)


def metrics_of(task: Any) -> Metrics:
    """The metrics that judge a task: its own; of a loss that is no task of kdx, accuracy over classes.

    Args:
        task: as a scheme holds it.

    Raises:
        ValueError: a loss of torch that accuracy does not suit.

    Example:
        >>> import kdx
        >>> sorted(metrics_of(kdx.make("task", "regression"))(torch.zeros(2, 1)))
        ['mae', 'r2', 'rmse']
    """
    if callable(own := getattr(task, "metrics", None)):
        metrics: Metrics = own
        return metrics
    responses = responses_of(task)
    if responses.ignored != IGNORE or is_by_element(task):
        what = f"ignore_index={responses.ignored}" if responses.ignored != IGNORE else "a loss of single elements"
        raise ValueError(
            f"evaluate: the task is {what}, and the metrics that judge it are not known; give metrics=, such as "
            "kdx.make('task', 'regression').metrics, or evaluate=None"
        )
    return Classification(class_dim=responses.class_dim).metrics


def classification(logits: Tensor) -> dict[str, Any]:
    """Accuracy over single-label classes; the default."""
    return Classification().metrics(logits)


@explaining_lost_workers()
def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    metrics: Metrics = classification,
    device: torch.device | str | None = None,
    output: Callable[[Any], Any] | str | Head | None = None,
) -> Measured:
    """Runs a model over a loader in evaluation mode, without gradient, and computes metrics.

    The model's modes (train, eval) and the global random states are restored afterwards.

    Args:
        model: the model, on ``device``.
        loader: batches as :meth:`kdx.Batch.of` reads them, with targets.
        metrics: see :data:`Metrics`.
        device: where batches go; None takes the model's.
        output: see :class:`kdx.Taps`; it may also give a mapping of tensors, as :meth:`kdx.tasks.Heads.read` does. With
            a :class:`kdx.Head` metrics get :class:`kdx.LinearLogits`, as those of the task causal-lm take them, and the
            logits of a batch are never held whole.

    Returns:
        Metric name -> value; its attribute ``higher_is_better`` says of every metric whether more is better.

    Raises:
        ValueError: the loader is empty, or its batches are.
        ComponentError: the model, a metric or the data fail, or outputs are NaN; the message names the batch.

    Warns:
        UserWarning: a metric is NaN.
    """
    device = device if device is not None else next((p.device for p in model.parameters()), torch.device("cpu"))
    answer = _answers(model, output)
    computed: Mapping[str, Any] | None = None
    rows = 0
    with rng.isolated(), evaluating(model), torch.no_grad():
        for number, item in enumerate(blamed(loader), start=1):
            batch = Batch.of(item).to(device)
            with blaming(f"batch {number} of the evaluation: the model", model):
                logits = _float(answer(batch.inputs))
                _check_numbers(logits, batch)
            rows += batch.rows
            if computed is None:
                with blaming("the metrics", metrics):
                    computed = {name: metric.to(device) for name, metric in metrics(logits).items()}
            for name, metric in computed.items():
                shapes = f"outputs {_shape(logits)} and targets {_shape(batch.targets)}"
                what = f"batch {number} of the evaluation: metric {name!r}, for {shapes},"
                with blaming(what, metric):
                    metric.update(logits, batch.targets)
    if computed is None:
        raise ValueError("evaluate got an empty loader; give at least one batch")
    if not rows:
        raise ValueError("evaluate got batches without a row; give at least one row")
    values = {name: _number(name, metric) for name, metric in computed.items()}
    if nans := [name for name, value in values.items() if math.isnan(value)]:
        warnings.warn(
            f"the metrics {', '.join(nans)} are NaN over {rows} rows: none has a label, or too few have one",
            stacklevel=2,
        )
    return Measured(values, {name: getattr(metric, "higher_is_better", None) for name, metric in computed.items()})


def output_for(scheme: Scheme, student: str, metrics: Any) -> Callable[[Any], Any] | Head:
    """The ``output`` that a student of a scheme is evaluated with: its head where there is one and metrics take it.

    Args:
        scheme: that of the student.
        student: its name.
        metrics: those that judge it, see :func:`evaluate`.
    """
    head = scheme.head_of(student)
    takes_held = getattr(getattr(metrics, "__self__", None), "takes_held", False)
    return scheme.reader(student) if head is None or not takes_held else head


def _answers(model: nn.Module, output: Callable[[Any], Any] | str | Head | None) -> Callable[[Any], Any]:
    """The function that runs a model on inputs and gives what metrics get."""
    if isinstance(output, Head):
        taps = Taps(model, output=output)
        return lambda inputs: taps(inputs).response(LOGITS)
    read = reader(output) if isinstance(output, str) else output or logits_of
    return lambda inputs: read(call(model, inputs))


def _check_numbers(outputs: Any, batch: Batch) -> None:
    """Checks that no output is NaN, which metrics would take for some class or other."""
    outputs = outputs.hidden if isinstance(outputs, LinearLogits) else outputs
    found = outputs.values() if isinstance(outputs, Mapping) else [outputs]
    wrong = [output for output in found if isinstance(output, Tensor) and bool(output.isnan().any())]
    if wrong:
        hole = holes(batch)
        if hole is None:
            raise ValueError("its outputs are NaN, and its inputs are numbers; it has diverged, or divides by zero")
        raise ValueError(f"its outputs are NaN, as its {hole}; mend or leave out those samples")


def _number(name: str, metric: Any) -> float:
    with blaming(f"metric {name!r}", metric):
        value = metric.compute()
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"expected one number, got a tensor of shape {list(value.shape)}; average it")
        return float(value)


def _float(outputs: Any) -> Any:
    if isinstance(outputs, Mapping):
        return {name: output.float() for name, output in outputs.items()}
    return outputs if isinstance(outputs, LinearLogits) else outputs.float()


def _shape(value: Any) -> str:
    if isinstance(value, Mapping):
        return str({name: _shape(item) for name, item in value.items()})
    return str(list(value.shape)) if isinstance(value, Tensor | LinearLogits) else type(value).__name__
