"""The ledger of compute: forward passes, operations, steps and seconds that a run has cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.nn import Module

from kdx.batch import Batch
from kdx.schemes.base import Scheme
from kdx.teachers import Teacher
from kdx.training.incoming import leaves

__all__ = ["Compute", "Ledger"]


@dataclass(frozen=True, slots=True)
class Compute:
    """Record of compute that was spent, in plain values; ``+`` adds two, and ``sum(costs, Compute())`` many.

    Args:
        student_samples: forward passes of students in samples, those of evaluations too.
        backward_samples: those of them with a gradient.
        teacher_samples: forward passes of teachers in samples; an answer from a store is none.
        flops: operations of these passes, as :func:`kdx.analysis.count_flops` counts them for a whole model, and twice
            as many again for a gradient; None where they cannot be counted. The optimizer and losses are left out.
        steps: optimizer steps.
        seconds: of training, by the clock.
        trials: trainings that a search has begun.

    Example:
        >>> Compute(steps=2, flops=10) + Compute(steps=3, flops=5, trials=1)
        Compute(student_samples=0, backward_samples=0, teacher_samples=0, flops=15, steps=5, seconds=0.0, trials=1)
    """

    student_samples: int = 0
    backward_samples: int = 0
    teacher_samples: int = 0
    flops: int | None = 0
    steps: int = 0
    seconds: float = 0.0
    trials: int = 0

    def __add__(self, other: Compute) -> Compute:
        if not isinstance(other, Compute):
            return NotImplemented
        mine, its = self.as_dict(), other.as_dict()
        added: dict[str, Any] = {key: None if None in (mine[key], its[key]) else mine[key] + its[key] for key in mine}
        return Compute(**added)

    def as_dict(self) -> dict[str, Any]:
        """The plain values by name, as they stand in ``result.json``."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Compute:
        """The record of :meth:`as_dict`.

        Raises:
            ValueError: a key is missing, or one is unknown.
        """
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise ValueError(f"a record of compute has the keys {', '.join(sorted(known))}; got {sorted(values)}")
        return cls(**values)


class Ledger:
    """Counts the forward passes of a scheme's students and teachers.

    Args:
        scheme: whose models are counted; each by what it is called in the scheme.
        processes: how many train together, each of which does as much.
    """

    def __init__(self, scheme: Scheme, processes: int = 1) -> None:
        self.scheme = scheme
        self.processes = processes
        self.passes: dict[str, list[int]] = {}
        """Model -> samples that it has run on, and those of them with a gradient."""
        self._rows: dict[str, Any] = {}
        self._teachers: dict[str, nn.Module] | None = None

    def models(self) -> dict[str, nn.Module]:
        """The models that run, by name; one that is both is a student."""
        students = dict(self.scheme.students)
        if self._teachers is None:  # which are those of the beginning, as a walk over all modules takes its time
            parts = {name: part for name, part in self.scheme.named_modules() if isinstance(part, Teacher)}
            self._teachers = {name: model for name, part in parts.items() if (model := _model_of(part)) is not None}
        known = {id(student) for student in students.values()}
        return students | {name: model for name, model in self._teachers.items() if id(model) not in known}

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts what runs within; no hook is on a model outside."""
        with ExitStack() as hooks:
            for name, model in self.models().items():
                handle = model.register_forward_pre_hook(self._counter(name), with_kwargs=True)
                hooks.callback(handle.remove)
            yield

    def count(self, batches: Iterable[Batch]) -> None:
        """Counts one pass of every model on batches, where hooks would break a graph: under ``torch.compile``."""
        students = self.scheme.students
        for batch in batches:
            for name in self.models():
                self._add(name, batch.rows, with_gradient=name in students)
                self._keep(name, batch.inputs)

    def compute(self, steps: int, seconds: float) -> Compute:
        """The record so far; counting operations runs every model once more on one sample, in evaluation mode."""
        students = [self.passes[name] for name in self.passes if name in self.scheme.students]
        teachers = [self.passes[name] for name in self.passes if name not in self.scheme.students]
        return Compute(
            student_samples=sum(samples for samples, _ in students) * self.processes,
            backward_samples=sum(gradient for _, gradient in students) * self.processes,
            teacher_samples=sum(samples for samples, _ in teachers) * self.processes,
            flops=self._flops(),
            steps=steps,
            seconds=seconds,
        )

    def state_dict(self) -> dict[str, list[int]]:
        """The counts, from which a resumed run goes on."""
        return {name: list(counts) for name, counts in self.passes.items()}

    def load_state_dict(self, state: Mapping[str, list[int]]) -> None:
        """Goes on from saved counts."""
        self.passes = {name: list(counts) for name, counts in state.items()}

    def _counter(self, name: str) -> Any:
        def count(_: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = kwargs if not args else args[0] if len(args) == 1 and not kwargs else (*args, *kwargs.values())
            if found := [tensor for _, tensor in leaves(inputs) if tensor.dim()]:
                self._add(name, len(found[0]), with_gradient=torch.is_grad_enabled())
                self._keep(name, inputs)

        return count

    def _add(self, name: str, samples: int, *, with_gradient: bool) -> None:
        counts = self.passes.setdefault(name, [0, 0])
        counts[0] += samples
        counts[1] += samples if with_gradient else 0

    def _keep(self, name: str, inputs: Any) -> None:
        if name not in self._rows:
            self._rows[name] = Batch(inputs).at(slice(0, 1)).inputs

    def _flops(self) -> int | None:
        from kdx.analysis.flops import count_flops  # imports torch's counter, which no run waits for

        total, models = 0, self.models()
        for name, (samples, gradient) in self.passes.items():
            if name not in self._rows or name not in models:
                return None  # of a run that was over when it was resumed
            try:
                of_one = count_flops(models[name], self._rows[name])
            except Exception:  # a run that has ended well does not fail by its ledger; None says that it is not known
                return None
            total += of_one * (samples + 2 * gradient) * self.processes
        return total


def _model_of(teacher: Teacher) -> nn.Module | None:
    """The model that a teacher runs itself, None for one that asks others or a store."""
    taps = getattr(teacher, "taps", None)
    return getattr(taps, "model", None)
