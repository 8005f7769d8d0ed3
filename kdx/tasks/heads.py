"""Several heads: a model with several outputs, each with a task of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS, reader
from kdx.errors import nearest
from kdx.items import keys_of
from kdx.losses import Count, Mean, Over, mean_of, scalar
from kdx.options import check_options
from kdx.ranges import check_number
from kdx.ref import Ref
from kdx.registry import default_plugins
from kdx.responses import Responses
from kdx.tasks.base import Task

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["Head", "Heads"]


@dataclass(frozen=True)
class Head:
    """One output of a model: its task, its weight, and where its outputs and targets are found.

    Args:
        task: that of the head: an object, a name such as ``"segmentation"``, or a name with options,
            ``{"name": "segmentation", "label_smoothing": 0.1}``.
        weight: of its loss, above 0.
        output: key or number of its item in what the model returns, or a path to it, as ``"[1][depth]"``; None: the
            head's name is the key.
        target: key or number of its targets in those of the batch; None: the head's name is the key.

    Raises:
        TypeError: the task is none.
        ValueError: a weight that is not above 0, or an output that is no path.
    """

    task: Any
    weight: float = 1.0
    output: str | int | None = None
    target: str | int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", _task(self.task))
        instead = "leave out a head that is not to be trained"
        object.__setattr__(self, "weight", check_number("the weight of a head", self.weight, above=0, instead=instead))

    @classmethod
    def of(cls, value: Any) -> Head:
        """A head as it is, of its task, or of the mapping that a recipe holds: ``{task: regression, weight: 0.5}``.

        Raises:
            TypeError: a mapping without ``task`` or with another key.
        """
        if isinstance(value, Head):
            return value
        if not isinstance(value, Mapping) or "name" in value:
            return cls(value)
        known = cls.__dataclass_fields__
        if unknown := [key for key in value if key not in known]:
            raise TypeError(f"a head has no option {unknown[0]!r}; {nearest(str(unknown[0]), known)}")
        if "task" not in value:
            raise TypeError(f"a head needs a task, as {{task: segmentation, weight: 1.0}}; got {dict(value)}")
        return cls(**value)


class Heads(Task):
    """Several outputs of one model, each with a task and a weight of its own.

    Loss: ``sum_h weight_h * task_h(outputs_h, targets_h)``. Heads are means over different things (pixels, rows), so in
    a scheme each is a term of its own, ``task/seg`` and ``task/depth``, with its own count; micro-batches and ranks are
    then put together exactly. Metrics are those of the heads, as ``seg/miou``.

    The model returns a mapping, an object or a tuple, and the targets of a batch are a mapping or a tuple; in a tuple
    ``output`` and ``target`` of :class:`Head` number the items. Knowledge reads one head, with
    ``student="logits[seg]", teacher="logits[seg]"``: it is then told what the task of that head says, and reads the
    targets of that head.

    Args:
        heads: name -> :class:`Head`, a task, or in a recipe ``{task: segmentation, weight: 1.0}``.
        judged: the head whose metric a run is judged by; None: the first.

    Raises:
        ValueError: no heads, a name with ``/`` or ``.``, two heads with one output, or ``judged`` is no head; in a
            call, targets without the item of a head.
        TypeError: a head without a task.

    Example:
        >>> import torch
        >>> task = Heads({"kind": Head("classification"), "size": Head("regression", weight=0.5)})
        >>> outputs = {"kind": torch.zeros(2, 3), "size": torch.ones(2, 1)}
        >>> targets = {"kind": torch.tensor([0, -100]), "size": torch.tensor([[3.0], [1.0]])}
        >>> {name: round(loss.value.item(), 3) for name, loss in task.losses(outputs, targets).items()}
        {'kind': 1.099, 'size': 2.0}
        >>> task.metric, task.taps["size"]
        ('kind/accuracy', 'logits[size]')
    """

    def __init__(
        self, heads: Mapping[str, Head | Task | str | Mapping[str, Any]], *, judged: str | None = None
    ) -> None:
        if not heads:
            raise ValueError("heads: expected at least one, as {'seg': Head('segmentation')}, got none")
        if wrong := [name for name in heads if not name or "/" in name or "." in name]:
            raise ValueError(f"heads: the name {wrong[0]!r} is not allowed: give one without '/' and '.'")
        self.heads = {name: Head.of(head) for name, head in heads.items()}
        paths = {name: _path(name if head.output is None else head.output) for name, head in self.heads.items()}
        self.taps = {name: LOGITS + path for name, path in paths.items()}
        self._readers = {name: reader(path) for name, path in paths.items()}
        self._keys = {keys_of(path): name for name, path in paths.items()}
        if len(self._keys) < len(paths):
            raise ValueError(f"heads: each needs an output of its own, got {paths}")
        if judged is not None and judged not in self.heads:
            raise ValueError(f"judged: there is no head {judged!r}; {nearest(judged, self.heads)}")
        self.judged = next(iter(self.heads)) if judged is None else judged
        first = self.heads[self.judged].task
        self.metric = f"{self.judged}/{first.metric}"
        self.label = f"{first.label} of {self.judged}"
        self.higher_is_better, self.share = first.higher_is_better, first.share
        self.relational = any(head.task.relational for head in self.heads.values())

    @property
    @override
    def responses(self) -> Responses:
        """Nothing of all outputs together; :meth:`responses_at` tells those of a head."""
        return Responses(form=None, void=None)

    @property
    @override
    def parts(self) -> tuple[Task, ...]:
        return tuple(head.task for head in self.heads.values())

    @override
    def responses_at(self, tap: str) -> Responses | None:
        """The facts of one head's outputs, whose tap is as ``logits[seg]``; None for any other tap."""
        name = self.head_at(tap)
        return None if name is None else self.heads[name].task.responses.at(self.taps[name])

    def head_at(self, tap: str) -> str | None:
        """The name of the head whose outputs are at a tap; None for any other tap."""
        start, path = tap[: len(LOGITS)], tap[len(LOGITS) :]
        return self._keys.get(keys_of(path)) if start == LOGITS and path.startswith("[") else None

    def read(self, result: Any) -> dict[str, Tensor]:
        """The outputs of every head in what a model returned.

        Raises:
            CaptureError: there is no such item.
        """
        return {name: read(result) for name, read in self._readers.items()}

    def target_of(self, name: str, targets: Any) -> Any:
        """The targets of one head, None where there are none at all.

        Raises:
            ValueError: the targets have no item for it.
        """
        if targets is None:
            return None
        key = self.heads[name].target
        key = name if key is None else key
        is_mapping = isinstance(targets, Mapping)
        if is_mapping and key in targets:
            return targets[key]
        if isinstance(targets, tuple | list) and isinstance(key, int) and -len(targets) <= key < len(targets):
            return targets[key]
        came = f"a mapping with the keys {list(targets)}" if is_mapping else _shown(targets)
        raise ValueError(
            f"head {name!r}: expected its targets as item {key!r} of those of the batch, got {came}; give a mapping of "
            "the heads' names, or say which item it is: target='...' in a mapping, target=0 in a tuple"
        )

    def losses(self, outputs: Mapping[str, Tensor], targets: Any) -> dict[str, Mean]:
        """The loss of every head without its weight, with what it is a mean over."""
        found = {}
        for name, head in self.heads.items():
            own = self.target_of(name, targets)
            loss = head.task(outputs[name], own)
            what = f"the task loss of head {name!r}"
            found[name] = mean_of(what, loss) or Mean(scalar(what, loss), head.task.count(own), Over.TASK)
        return found

    @override
    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """The weighted sum of the heads' losses; ``outputs`` is head -> tensor, as :meth:`read` gives it."""
        found = self.losses(outputs, targets)
        return torch.stack([self.heads[name].weight * mean.value for name, mean in found.items()]).sum()

    @override
    def count(self, targets: Any) -> Count:
        """How much the heads' losses are means over, added up; a scheme takes the count of each."""
        return sum((head.task.count(self.target_of(name, targets)) for name, head in self.heads.items()), 0.0)

    @override
    def metrics(self, outputs: Any) -> dict[str, Metric]:
        from kdx.tasks.prepared import Prepared

        return {
            f"{name}/{metric}": Prepared(made, _Only(self, name))
            for name, head in self.heads.items()
            for metric, made in head.task.metrics(outputs[name]).items()
        }

    @override
    def check(self, outputs: Any, targets: Any) -> None:
        for name, head in self.heads.items():
            try:
                head.task.check(outputs[name], self.target_of(name, targets))
            except (ValueError, TypeError) as error:
                raise type(error)(f"head {name!r}: {error}") from error

    @override
    def check_values(self, targets: Any, width: Any) -> None:
        for name, head in self.heads.items():
            try:
                head.task.check_values(self.target_of(name, targets), width[name])
            except ValueError as error:
                raise ValueError(f"head {name!r}: {error}") from error

    @override
    def labelled(self, targets: Any) -> Tensor:
        """Which rows have a label for a head at least: bool ``[N]``."""
        found = None
        for name, head in self.heads.items():
            own = head.task.labelled(self.target_of(name, targets))
            rows = own.reshape(len(own), -1).any(1)
            found = rows if found is None else found | rows
        assert isinstance(found, Tensor)  # there are heads
        return found

    @override
    def hidden(self, targets: Any) -> Any:
        """Targets of the same form in which nothing has a label for any head; other items as they are."""
        keys = {name if head.target is None else head.target: (name, head.task) for name, head in self.heads.items()}
        items = targets.items() if isinstance(targets, Mapping) else enumerate(targets)
        made = {
            key: keys[key][1].hidden(self.target_of(keys[key][0], targets)) if key in keys else value
            for key, value in items
        }
        return made if isinstance(targets, Mapping) else tuple(made.values())

    @override
    def dataset(self, data: Any) -> None:
        for part in self.parts:
            part.dataset(data)

    @override
    def outputs(self, num_classes: Any) -> Any:
        """The widths of the heads' outputs by name: the models' ``num_classes``.

        Args:
            num_classes: number of classes, labels or quantities of every head by name, as the data set has it.
        """
        if not isinstance(num_classes, Mapping) or (missing := self.heads.keys() - num_classes.keys()):
            lacking = f"; it lacks {sorted(missing)}" if isinstance(num_classes, Mapping) else ""
            raise ValueError(
                f"heads: expected num_classes of the data set by head, as {{'seg': 3, 'depth': 1}}, got "
                f"{num_classes}{lacking}"
            )
        return {name: head.task.outputs(num_classes[name]) for name, head in self.heads.items()}

    @override
    def __repr__(self) -> str:
        return f"Heads({', '.join(f'{name}: {head.task!r}' for name, head in self.heads.items())})"


class _Only:
    """Picks the outputs and targets of one head for its metric."""

    def __init__(self, task: Heads, name: str) -> None:
        self.task = task
        self.name = name

    def __call__(self, outputs: Any, targets: Any) -> tuple[Tensor, Any]:
        return outputs[self.name], self.task.target_of(self.name, targets)


def _task(value: Any) -> Task:
    """A task as it is, or of its name, or of its name with options."""
    if isinstance(value, Task):
        if isinstance(value, Heads):
            raise TypeError("a head has a task for one output, got Heads; give each of its heads by itself")
        return value
    if not isinstance(value, str | Mapping | Ref):
        raise TypeError(f"a head needs a task of kdx, an object or a name such as 'segmentation', got {value!r}")
    ref = Ref.of(value, "task")
    target = default_plugins().load("task", ref.name)
    return _task(target(**check_options(f"task ({ref.name})", target, ref.options)))


def _path(output: str | int) -> str:
    """The path of an item: of a number, of a key, or as it is."""
    if isinstance(output, int):
        return f"[{output}]"
    if output.startswith("["):
        return output
    return f"['{output}']" if output.isdigit() else f"[{output}]"


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"one tensor of shape {list(value.shape)}"
    return f"a {type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__
