"""Checks of a task: its loss, its counts, its metrics."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from kdx.batch import IGNORE
from kdx.options import options_of
from kdx.responses import Form
from kdx.tasks.base import Task
from kdx.testing.check import Check, bind, fail, require, run_all
from kdx.testing.tags import TaskTags

__all__ = ["check_task", "task_checks"]


def check_task(task: Task, *, tags: TaskTags | None = None, expected_failures: Mapping[str, str] | None = None) -> None:
    """Runs every check that applies to a task.

    Args:
        task: an instance; it is left as it is.
        tags: what it is tried on, see :class:`kdx.testing.TaskTags`.
        expected_failures: check name -> why it is known not to hold. One that holds after all is an error.

    Raises:
        CheckFailed: a check does not hold; the message names each and what it found.

    Example:
        >>> import kdx
        >>> check_task(kdx.make("task", "classification", label_smoothing=0.1))
    """
    run_all(task_checks(task, tags=tags, expected_failures=expected_failures))


def task_checks(
    task: Task, *, tags: TaskTags | None = None, expected_failures: Mapping[str, str] | None = None
) -> list[Check]:
    """The checks that apply to a task."""
    if not isinstance(task, Task):
        raise TypeError(f"task: expected an instance of kdx.Task, got {task!r}; give an object of it")
    found = tags or TaskTags()
    functions = list(_applicable(task, found))
    return bind(type(task).__name__, functions, task, found, expected_failures=expected_failures)


def _applicable(task: Task, tags: TaskTags) -> Iterator[Callable[[Task, TaskTags], None]]:
    yield check_documented
    yield check_copies
    yield check_scalar
    yield check_gradient_reaches_the_outputs
    yield check_gradient_is_right
    yield check_inputs_unchanged
    yield check_count
    if not task.relational:
        yield check_parts_add_up
    if tags.inputs is None or isinstance(_draw(task, tags)[1], Tensor):
        yield check_labelled
        yield check_unlabelled
        yield check_misfits_are_refused
    yield check_metrics
    yield check_outputs


def check_documented(task: Task, tags: TaskTags) -> None:
    """The class has a docstring that describes every option."""
    require(bool(inspect.cleandoc(type(task).__dict__.get("__doc__") or "")), "the class has no docstring of its own")
    if missing := [option.name for option in options_of(type(task)) if not option.doc]:
        fail(f"the docstring says nothing of the options {missing}; give each a line under 'Args:'")


def check_copies(task: Task, tags: TaskTags) -> None:
    """A deep copy and a pickled one give the same loss."""
    outputs, targets = _draw(task, tags)
    loss = task(outputs, targets)
    ways: dict[str, Callable[[Task], Task]] = {
        "copy.deepcopy": copy.deepcopy,
        "pickle": lambda one: pickle.loads(pickle.dumps(one)),
    }
    for how, make in ways.items():
        try:
            other = make(task)
        except Exception as error:
            fail(f"{how} of it raised {type(error).__name__}: {error}")
        require(torch.equal(other(outputs, targets), loss), f"after {how} the loss is {other(outputs, targets)}")


def check_scalar(task: Task, tags: TaskTags) -> None:
    """The loss is one finite number."""
    loss = task(*_draw(task, tags))
    require(isinstance(loss, Tensor), f"it returned {type(loss).__name__}, not a tensor")
    require(loss.dim() == 0, f"the loss has shape {list(loss.shape)}, not that of one number")
    require(bool(torch.isfinite(loss)), f"the loss is {loss.item()}")


def check_gradient_reaches_the_outputs(task: Task, tags: TaskTags) -> None:
    """The outputs get a gradient that is not 0 everywhere."""
    outputs, targets = _draw(task, tags)
    loss = task(outputs.requires_grad_(), targets)
    require(loss.requires_grad, "the loss has no graph; something detached it from the outputs")
    (gradient,) = torch.autograd.grad(loss, outputs)
    require(bool(gradient.any()), "the gradient is 0 everywhere")


def check_gradient_is_right(task: Task, tags: TaskTags) -> None:
    """In float64 the gradient is that of the loss: differences of it agree."""
    outputs, targets = _draw(task, tags)
    outputs = outputs.double().requires_grad_()
    with torch.random.fork_rng(devices=[]):
        (gradient,) = torch.autograd.grad(task(outputs, targets), outputs)
        direction = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        with torch.no_grad():
            near, far = (task(outputs + step * direction, targets) for step in (-1e-5, 1e-5))
    slope, expected = ((far - near) / 2e-5).item(), (gradient * direction).sum().item()
    require(abs(slope - expected) <= 1e-6 * max(1, abs(slope)), f"the slope is {slope}, the gradient gives {expected}")


def check_inputs_unchanged(task: Task, tags: TaskTags) -> None:
    """Outputs and targets are left as they are."""
    outputs, targets = _draw(task, tags)
    before = copy.deepcopy((outputs, targets))
    task(outputs, targets)
    task.count(targets)
    require(torch.equal(outputs, before[0]), "it changed the outputs")
    same = targets == before[1]
    if isinstance(targets, Tensor):
        same = torch.allclose(targets, before[1], rtol=0, atol=0, equal_nan=True)
    require(same, "it changed the targets")


def check_count(task: Task, tags: TaskTags) -> None:
    """The count is one finite number above 0, a float or a tensor without a graph."""
    count = task.count(_draw(task, tags)[1])
    if isinstance(count, Tensor):
        require(count.dim() == 0 and not count.requires_grad, f"the count is {count}, not one number without a graph")
    require(0 < float(count) < float("inf"), f"the count is {float(count)}")


def check_parts_add_up(task: Task, tags: TaskTags) -> None:
    """The losses of two parts of a batch, weighed by their counts, are the loss of the batch."""
    outputs, targets = _draw(task, tags)
    outputs = outputs.double()
    cut = max(1, tags.rows // 3)
    parts = [(outputs[rows], targets[rows]) for rows in (slice(cut), slice(cut, None))]
    counts = [float(task.count(part[1])) for part in parts]
    whole = task(outputs, targets).item()
    joined = sum(count * task(*part).item() for count, part in zip(counts, parts, strict=True)) / max(
        sum(counts), 1e-30
    )
    require(
        abs(joined - whole) <= 1e-9 * max(1, abs(whole)),
        f"the batch gives {whole}, its parts with the counts {counts} give {joined}; count what the mean is over, or "
        "say relational = True if the loss compares samples",
    )


def check_labelled(task: Task, tags: TaskTags) -> None:
    """It says of every element of the targets whether it has a label; of hidden ones that none has."""
    targets = _draw(task, tags)[1]
    for what, given in (("the targets", targets), ("hidden targets", task.hidden(targets))):
        labelled = task.labelled(given)
        shape, dtype = list(given.shape), labelled.dtype
        require(
            list(labelled.shape) == shape and dtype == torch.bool,
            f"of {what} of shape {shape} it gives {dtype} of shape {list(labelled.shape)}",
        )
    require(not labelled.any(), f"of hidden targets {int(labelled.sum())} elements have a label")
    require(bool(task.labelled(targets).any()), "of the targets that it is tried on none has a label")


def check_unlabelled(task: Task, tags: TaskTags) -> None:
    """A batch without a label (hidden targets: -100 in integers, NaN in floats) counts 0, and its loss is 0 with zero
    gradient.
    """
    outputs, targets = _draw(task, tags)
    targets = task.hidden(targets)
    loss = task(outputs.requires_grad_(), targets)
    require(loss.item() == 0, f"the loss is {loss.item()}")
    require(float(task.count(targets)) == 0, f"the count is {float(task.count(targets))}")
    (gradient,) = torch.autograd.grad(loss, outputs)
    require(not gradient.any(), f"the gradient has {int(gradient.count_nonzero())} elements that are not 0")


def check_misfits_are_refused(task: Task, tags: TaskTags) -> None:
    """Its method check takes outputs and targets that belong together, and refuses targets of a row fewer."""
    outputs, targets = _draw(task, tags)
    try:
        task.check(outputs, targets)
    except (ValueError, TypeError) as error:
        fail(f"it refuses what it is tried on: {error}")
    try:
        task.check(outputs, targets[1:])
    except (ValueError, TypeError):
        return
    fail(f"it takes {len(targets) - 1} targets for {len(outputs)} outputs")


def check_metrics(task: Task, tags: TaskTags) -> None:
    """Its metrics are of torchmetrics, new ones each time, among them the one that it names, with its direction; each
    gives a finite number.
    """
    from torchmetrics import Metric

    outputs, targets = _draw(task, tags)
    made, again = task.metrics(outputs), task.metrics(outputs)
    require(task.metric in made, f"the metric is {task.metric!r}, those made are {sorted(made)}")
    require(isinstance(task.label, str) and bool(task.label), f"the label is {task.label!r}")
    if (higher := made[task.metric].higher_is_better) is not None:
        require(
            higher == task.higher_is_better,
            f"higher_is_better is {task.higher_is_better}, that of the metric {task.metric!r} is {higher}",
        )
    for name, metric in made.items():
        require(isinstance(metric, Metric), f"the metric {name!r} is {metric!r}, not of torchmetrics")
        require(metric is not again[name], f"the metric {name!r} is the same object a second time")
        metric.update(outputs, targets)
        value = metric.compute()
        require(bool(torch.isfinite(torch.as_tensor(value)).all()), f"the metric {name!r} is {value}")


def check_outputs(task: Task, tags: TaskTags) -> None:
    """The width that models need is a whole number of at least 1."""
    width = task.outputs(tags.classes)
    require(isinstance(width, int) and width >= 1, f"for {tags.classes} classes the width is {width!r}")


def _draw(task: Task, tags: TaskTags) -> tuple[Tensor, Any]:
    """Float32 outputs and targets, the same numbers every time."""
    if tags.inputs is not None:
        return tags.inputs(tags.rows)
    generator = torch.Generator().manual_seed(0)
    responses, width = task.responses, task.outputs(tags.classes)
    shape = {None: (width,), 1: (width, 3, 2)}.get(responses.class_dim, (4, width))
    outputs = torch.randn(tags.rows, *shape, generator=generator)
    if responses.form in (Form.BERNOULLI, Form.VALUES):
        wide = width if responses.form is Form.BERNOULLI else tags.classes
        targets = torch.randn(tags.rows, wide, generator=generator)
        targets = (targets > 0).to(targets) if responses.form is Form.BERNOULLI else targets
        targets[1, 0] = torch.nan
        return outputs, targets
    inner = [size for axis, size in enumerate(shape, 1) if len(shape) > 1 and axis != responses.class_dim]
    targets = torch.arange(tags.rows * math.prod(inner)).reshape(tags.rows, *inner) % tags.classes
    targets[1] = IGNORE
    return outputs, targets
