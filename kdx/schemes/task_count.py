"""A task loss read: how many things it is a mean over, by the targets alone, and what its outputs are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from kdx.batch import IGNORE, Batch
from kdx.losses import Count
from kdx.responses import Form, Responses

__all__ = [
    "check_task",
    "elements",
    "is_by_class",
    "is_by_element",
    "labelled",
    "logits_form",
    "loss_name",
    "option_of",
    "responses_of",
    "task_count",
]

_BY_CLASS = (nn.CrossEntropyLoss, nn.NLLLoss)
_BY_CLASS_FUNCTIONS = (F.cross_entropy, F.nll_loss)
_BY_ELEMENT = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.SoftMarginLoss,
    nn.GaussianNLLLoss,
    nn.PoissonNLLLoss,
)
_BY_ELEMENT_FUNCTIONS = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.soft_margin_loss,
    F.gaussian_nll_loss,
    F.poisson_nll_loss,
)


def check_task(task: Any) -> None:
    """Checks that a loss of torch is a mean.

    Raises:
        TypeError: the task is not callable.
        ValueError: its ``reduction`` is ``"sum"`` or ``"none"``.
    """
    if not callable(task):
        raise TypeError(f"task must be fn, (weight, fn) or None, with fn(logits, targets); got {task!r}")
    reduction = option_of(task, "reduction", "mean")
    if reduction in ("sum", "none"):
        raise ValueError(
            f"task: {loss_name(task)} has reduction={reduction!r}, and the task loss is a mean, so that it weighs the "
            "same whatever the batch size; leave reduction out, or give a function that returns (value, count)"
        )


def task_count(task: Callable[[Tensor, Any], Any], batch: Batch) -> Count:
    """Counts the things that ``task(logits, batch.targets)`` is a mean over.

    A task that has a method ``count(targets)`` says so itself, as the tasks of kdx do. Of torch's losses by class
    (modules, functions, and functions in :func:`functools.partial`) it is the number of targets that are not
    ``ignore_index``, or the sum of their class weights; of losses by element the number of elements of the targets. Of
    any other function it is the number of integer targets that are not ``-100``, or else of samples.
    """
    targets = batch.targets
    if targets is None:
        return 0
    count = getattr(task, "count", None)
    if callable(count):
        found: Count = count(targets)
        return found
    if isinstance(targets, Tensor):
        if is_by_class(task):
            return _class_count(task, targets)
        if is_by_element(task):
            return targets.numel()
    return labelled(batch)


def is_by_class(task: Any) -> bool:
    """Whether a task is a loss of torch that takes class numbers."""
    return isinstance(task, _BY_CLASS) or _function(task) in _BY_CLASS_FUNCTIONS


def loss_name(task: Any) -> str:
    """The name of a loss of torch, as messages show it."""
    return type(task).__name__ if isinstance(task, nn.Module) else getattr(_function(task), "__name__", "task")


def is_by_element(task: Any) -> bool:
    """Whether a task is a loss of torch whose mean is over the single elements of the targets."""
    return isinstance(task, _BY_ELEMENT) or _function(task) in _BY_ELEMENT_FUNCTIONS


def labelled(batch: Batch, task: Any = None) -> Count:
    """How many integer targets are not ``-100``; for targets of another kind the number of samples.

    Of a task whose outputs are predictions of the next token (``Responses.shift``) the first of a sequence is none.
    """
    if isinstance(batch.targets, Tensor) and not batch.targets.is_floating_point():
        aligned: Tensor = responses_of(task).aligned(batch.targets)
        return (aligned != IGNORE).sum()
    return 0 if batch.targets is None else batch.rows


def elements(batch: Batch) -> Count:
    """How many integer targets there are, with a label or without; for targets of another kind samples."""
    if isinstance(batch.targets, Tensor) and not batch.targets.is_floating_point():
        return batch.targets.numel()
    return batch.rows


def responses_of(task: Any) -> Responses:
    """Reads what a task loss says of the outputs: a task of kdx in full, a loss by class of torch its class axis."""
    if isinstance(found := getattr(task, "responses", None), Responses):
        return found
    if is_by_class(task):
        return Responses(Form.CLASSES, class_dim=1, void=None, ignored=option_of(task, "ignore_index", IGNORE))
    of_labels = isinstance(task, nn.BCEWithLogitsLoss) or _function(task) is F.binary_cross_entropy_with_logits
    return Responses(Form.BERNOULLI if of_labels else None, void=None)


def logits_form(task: Any) -> Form | None:
    """The form of the logits that a task loss takes; None where it is not known to take logits."""
    if isinstance(found := getattr(task, "responses", None), Responses):
        return found.form if found.form in (Form.CLASSES, Form.BERNOULLI) else None
    if isinstance(task, nn.CrossEntropyLoss) or _function(task) is F.cross_entropy:
        return Form.CLASSES
    if isinstance(task, nn.BCEWithLogitsLoss) or _function(task) is F.binary_cross_entropy_with_logits:
        return Form.BERNOULLI
    return None


def _class_count(task: Any, targets: Tensor) -> Count:
    if targets.is_floating_point():  # probabilities [N, C, ...]: torch divides by everything but the classes
        return targets.numel() // (targets.shape[1] if targets.dim() > 1 else targets.shape[0])
    counted = targets != option_of(task, "ignore_index", IGNORE)
    weight: Tensor | None = option_of(task, "weight", None)
    if weight is None:
        rows: Tensor = counted.sum()
        return rows
    total: Tensor = weight.to(targets.device)[targets[counted]].sum()
    return total


def _function(task: Any) -> Any:
    return task.func if isinstance(task, functools.partial) else task


def option_of(task: Any, name: str, default: Any) -> Any:
    """An option of a loss: an attribute of a module of torch, a keyword of a partial function."""
    if isinstance(task, functools.partial):
        return task.keywords.get(name, default)
    if isinstance(task, nn.modules.loss._Loss):
        return getattr(task, name, default)
    return default
