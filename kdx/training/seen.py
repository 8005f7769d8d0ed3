"""The calls of components and students within one pass of a scheme."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from kdx.batch import Batch
from kdx.blame import blaming
from kdx.capture import Captured
from kdx.knowledge.base import Knowledge
from kdx.responses import Form
from kdx.schemes.base import Scheme
from kdx.schemes.task_count import logits_form, responses_of
from kdx.schemes.torch_losses import checks_of
from kdx.tasks.base import Task
from kdx.tasks.heads import Heads
from kdx.training.sigmoids import Sigmoids

__all__ = ["Call", "Seen", "components_of", "forms_of"]


@dataclass(slots=True)
class Call:
    """One call of a knowledge component: what it read, and its loss.

    Args:
        name: of its term.
        component: what was called.
        student: what it read in the student.
        teacher: what it read in the teacher.
        loss: what it gave.
        learns: whether gradients were recorded.
    """

    name: str
    component: Knowledge
    student: Captured
    teacher: Captured
    loss: Any
    learns: bool


class Seen:
    """Notes, within its block, every call of a scheme's components and the outputs of its students.

    Args:
        scheme: what runs in the block; its hooks are gone afterwards.
        batch: what it runs on; outputs that have its number of rows are checked against its targets, by its task.
    """

    def __init__(self, scheme: Scheme, batch: Batch) -> None:
        self.scheme = scheme
        self.batch = batch
        self.calls: list[Call] = []
        self.sigmoids = Sigmoids()
        self._results: list[tuple[str, Any]] = []
        self._open = ExitStack()

    def __enter__(self) -> Self:
        for path, component in components_of(self.scheme).items():
            self._hook(component, self._note_call, path.rpartition(".")[2])
        for name, student in self.scheme.students.items():
            self._hook(student, self._note_result, name)
        forms = {form for part in components_of(self.scheme).values() for form in forms_of(part)}
        task = self.scheme.task
        tasks = task.parts if isinstance(task, Task) else (task,)
        if Form.BERNOULLI in forms | {logits_form(each) for each in tasks}:
            self._open.enter_context(self.sigmoids)
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @property
    def outputs(self) -> list[tuple[str, Any, Tensor]]:
        """Student, task and logits of every pass of a student as a whole; of several heads each by itself."""
        found: list[tuple[str, Any, Tensor]] = []
        for name, result in self._results:
            outputs, task = self.scheme.reader(name)(result), self.scheme.task
            if isinstance(task, Heads):
                found += [(f"{name}: {head}", task.heads[head].task, each) for head, each in outputs.items()]
            else:
                found.append((name, task, outputs))
        return found

    @property
    def width(self) -> Any:
        """The width of the students' outputs on the axis of the classes, the least of several students.

        Of several heads it is a mapping by name; None where no student ran as a whole.
        """
        found: dict[str, int] = {}
        for name, task, outputs in self.outputs:
            head = name.rpartition(": ")[2] if isinstance(self.scheme.task, Heads) else ""
            width = outputs.shape[responses_of(task).axis(outputs.shape)] if outputs.dim() > 1 else 1
            found[head] = min(found.get(head, width), width)
        return found if isinstance(self.scheme.task, Heads) else found.get("")

    def _hook(self, module: nn.Module, note: Any, name: str) -> None:
        def hook(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            note(name, module, args, kwargs, result)

        self._open.callback(module.register_forward_hook(hook, with_kwargs=True).remove)

    def _note_call(self, name: str, component: Knowledge, args: Any, kwargs: Any, loss: Any) -> None:
        given = dict(zip(("student", "teacher"), args, strict=False)) | kwargs
        self.calls.append(Call(name, component, given["student"], given["teacher"], loss, torch.is_grad_enabled()))

    def _note_result(self, name: str, _student: nn.Module, _args: Any, _kwargs: Any, result: Any) -> None:
        self._results.append((name, result))
        task, targets = self.scheme.task, self.batch.targets
        checks = checks_of(task)
        if checks is not None and self.scheme.task_weight > 0 and targets is not None:
            outputs = self.scheme.reader(name)(result)
            first = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs
            if first.dim() and len(first) == self.batch.rows:
                with blaming("the task", task):
                    if self.scheme.head_of(name) is None:
                        checks.check(outputs, targets)
                    elif isinstance(task, Task):  # the model made the last logits alone; the loss holds all to targets
                        task.check_values(targets, outputs.shape[-1])


def components_of(scheme: Scheme) -> dict[str, Knowledge]:
    """Path -> component, copies for several pairs included; none that is part of another one."""
    found: dict[str, Knowledge] = {}
    for path, part in scheme.named_modules():
        if isinstance(part, Knowledge) and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = part
    return found


def forms_of(component: Knowledge) -> set[Form | None]:
    """The forms of outputs that a component, or one inside it, takes a softmax or sigmoids of."""
    return {getattr(part, "form", None) for part in component.modules() if isinstance(part, Knowledge)}
