"""The importance of channels: by their filters, by what flows through them, by what the loss would lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from kdx import Batch, Taps
from kdx.errors import StudentError
from kdx.students import ChannelGroup, StudentData
from kdx.tasks import Heads
from kdx_prune.gates import Gates, Place, evaluating, run
from kdx_prune.rows import first

__all__ = ["Importance", "score"]

Importance: TypeAlias = Literal["l1", "l2", "activation", "taylor", "distillation"]


def score(
    importance: Importance,
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    data: StudentData | None = None,
    *,
    rows: int = 1024,
    teacher: nn.Module | None = None,
) -> list[Tensor]:
    """The importance of every channel of a network.

    - ``l1``, ``l2``: norm of the filters that make a channel, summed over the weights that make it (Li et al. 2017,
      https://arxiv.org/abs/1608.08710).
    - ``activation``: mean absolute value of what the layers that read a channel get from it, over positions, and the
      L2 norm of that over rows (Muralidharan et al. 2024, https://arxiv.org/abs/2407.14679); no gradient, no label.
    - ``taylor``: square of the first-order change of the task loss when the channel goes, the mean over batches
      (Molchanov et al. 2019, https://arxiv.org/abs/1906.10771). Rows without a label count nothing.
    - ``distillation``: square of that change for the distillation loss, row by row: targets are drawn from what the
      teacher gives (classes by its probabilities, quantities around its values with variance 1) and the gradient of the
      student's log-likelihood of them is squared. No label is needed. At the teacher itself, where the distillation
      loss is 0 and its gradient too, the mean is the Fisher information, twice the second-order rise of that loss
      (Theis et al. 2018, https://arxiv.org/abs/1801.05787).

    Where no layer reads a channel directly, what the layers that make it give is taken instead; the inner channels of
    an ``nn.MultiheadAttention`` are compared within a head by the norm of their filters.

    Args:
        importance: one of these.
        model: the network that loses channels; it is run in evaluation mode and left as it is.
        groups: its channels, see :func:`kdx.students.channel_groups`.
        data: rows and their task; ``l1`` and ``l2`` need none.
        rows: how many rows are looked at, at most; the batch in which the last one lies is used whole.
        teacher: for ``distillation``, whose outputs count; None is the network itself.

    Returns:
        For every group the importance of its channels, ``[C]`` float64.

    Raises:
        ValueError: there is no importance of this name.
        StudentError: data is needed and there is none, or it says nothing about the channels.
    """
    if importance not in get_args(Importance):
        raise ValueError(f"importance must be one of {', '.join(get_args(Importance))}; got {importance!r}")
    norms = _norms(model, 2 if importance == "l2" else 1)
    if importance in ("l1", "l2"):
        return [_at_makers(group, norms) for group in groups]
    if data is None:
        raise StudentError(f"importance {importance!r} is found by running rows through the network; give data")
    total = [torch.zeros(len(group), dtype=torch.float64) for group in groups]
    seen = batches = 0
    with evaluating(model), evaluating(teacher if teacher is not None else model):
        draw = torch.Generator().manual_seed(0)
        for batch in first(data, rows, model):
            values, read = _values(importance, model, batch, data, teacher, draw)
            for place, group in enumerate(groups):
                each = _of_rows(group, values, read)  # [N, C] or [C]
                if importance == "taylor":
                    each = each.reshape(-1, len(group)).sum(0, keepdim=True)
                total[place] += each.reshape(-1, len(group)).square().sum(0)
            seen, batches = seen + batch.rows, batches + 1
    if importance == "activation":
        total = [one.sqrt() for one in total]
    else:
        if not any(bool(one.any()) for one in total):
            raise StudentError(
                f"importance {importance!r}: the loss of these {seen} rows depends on no channel; for 'taylor' they "
                "need labels ('distillation' and 'activation' need none)"
            )
        total = [one / (batches if importance == "taylor" else seen) for one in total]
    return [_at_makers(group, norms) if group.inner else one for group, one in zip(groups, total, strict=True)]


def _values(
    importance: Importance,
    model: nn.Module,
    batch: Batch,
    data: StudentData,
    teacher: nn.Module | None,
    draw: torch.Generator,
) -> tuple[dict[Place, Tensor], set[Place]]:
    """Place -> a number for each row and channel there, ``[N, C]``, of one batch; and which of them read channels."""
    gates = Gates(model, batch.rows, gated=importance != "activation")
    if importance == "activation":
        with torch.no_grad(), gates:
            _outputs(model, batch.inputs, data.task)
        return gates.activations, gates.read
    with gates:
        outputs = _outputs(model, batch.inputs, data.task)
    if importance == "taylor":
        with torch.enable_grad():
            return gates.derivatives(data.task(outputs, batch.targets)), gates.read
    if isinstance(data.task, Heads) or not isinstance(outputs, Tensor):
        raise StudentError("importance 'distillation' needs a task with one output; of several heads take 'taylor'")
    with torch.no_grad():
        taught = outputs if teacher is None else _outputs(teacher, batch.inputs, data.task)
        direction = _direction(outputs.detach(), taught.detach(), data.task, draw)
    return gates.derivatives((direction * outputs).sum()), gates.read


def _direction(student: Tensor, teacher: Tensor, task: Any, draw: torch.Generator) -> Tensor:
    """The derivative of the student's log-likelihood by its outputs, for targets drawn from the teacher's."""
    responses = getattr(task, "responses", None)
    form = None if responses is None or responses.form is None else responses.form.value
    if form == "classes":
        axis = responses.axis(tuple(student.shape))
        chances = teacher.movedim(axis, -1).softmax(-1)
        drawn = torch.multinomial(chances.flatten(0, -2).cpu().double(), 1, generator=draw).to(student.device)
        target = torch.zeros_like(chances).flatten(0, -2).scatter_(1, drawn, 1.0).reshape(chances.shape)
        return (target - student.movedim(axis, -1).softmax(-1)).movedim(-1, axis)
    if form == "Bernoulli":
        chances = teacher.sigmoid()
        return (torch.rand(chances.shape, generator=draw).to(chances) < chances).to(chances) - student.sigmoid()
    if form == "values":
        return teacher + torch.randn(teacher.shape, generator=draw).to(teacher) - student
    raise StudentError(
        f"importance 'distillation' draws targets from what the teacher gives, and the task ({type(task).__name__}) "
        "does not say what its outputs mean; take 'taylor', or a task whose outputs are classes, labels or values"
    )


def _outputs(model: nn.Module, inputs: Any, task: Any) -> Any:
    return task.read(run(model, inputs)) if isinstance(task, Heads) else Taps(model)(inputs)["logits"]


def _of_rows(group: ChannelGroup, values: Mapping[Place, Tensor], read: set[Place]) -> Tensor:
    """The values of a group's channels where they are read, else where they are made."""
    there = {place: values[place] for place in group.owners if place in values}
    return group.sum({place: value for place, value in there.items() if place in read} or there)


def _norms(model: nn.Module, power: int) -> dict[Place, Tensor]:
    return {
        (name, 0): torch.linalg.vector_norm(parameter.detach().flatten(1).double(), power, dim=1)
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 2
    }


def _at_makers(group: ChannelGroup, norms: Mapping[Place, Tensor]) -> Tensor:
    return group.sum({place: norms[place] for place in group.owners if place in norms})
