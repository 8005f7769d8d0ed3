"""The base of all schemes."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdx.batch import Batch
from kdx.capture import Captured
from kdx.errors import CaptureError, StoreWarning
from kdx.knowledge.base import Knowledge
from kdx.losses import Losses, cross_entropy, scalar, task_of
from kdx.schemes.weights import Balanced, Weight
from kdx.teachers import Teacher

__all__ = ["KnowledgeTerms", "Scheme", "Task", "TaskFn"]

TaskFn = Callable[[Tensor, Any], Tensor]
"""``(logits, targets) -> scalar``, a mean over the labelled rows."""

Task = TaskFn | tuple[float, TaskFn] | None
"""The task loss with its weight; a function alone weighs 1, None means no task loss."""

KnowledgeTerms = Mapping[str, Knowledge | tuple[Weight, Knowledge]]
"""Term name -> component, or weight and component; a weight is a number or a schedule of :mod:`kdx.schemes.weights`."""


class Scheme(nn.Module, ABC):
    """Who teaches whom. Calling it on a batch gives the losses; :func:`kdx.fit` trains it, any loop can.

    A scheme holds the students as submodules, the teachers with their policy and the weighted terms. It owns the
    isolation of gradients and keeps teachers in their mode. The task loss is its own, not a knowledge component.

    Args:
        task: ``(weight, fn)``, ``fn`` alone or None; ``fn(logits, targets)`` is a mean over labelled rows. The default
            is cross-entropy, 0 for a batch without labels.
        knowledge: name -> ``(weight, component)`` or component alone (weight 1).
    """

    trains_teacher: ClassVar[bool] = False
    """Whether the teacher is trained along; an experiment then hands over a new model and no stage trains it first."""

    phases: int = 1
    """Forward, backward and optimizer step that :func:`kdx.fit` takes for each batch (each window of micro-batches)."""

    phase: int = 0
    """Which of them runs now. Parameters that its losses do not reach get no gradient, so that no optimizer of torch
    moves them."""

    def __init__(self, *, task: Task = cross_entropy, knowledge: KnowledgeTerms | None = None) -> None:
        super().__init__()
        self.task_weight, self.task = _task(task)
        self.weights: dict[str, Weight] = {}
        self.knowledge = nn.ModuleDict()
        for name, term in (knowledge or {}).items():
            weight, component = term if isinstance(term, tuple) else (1.0, term)
            if not isinstance(component, Knowledge):
                raise TypeError(
                    f"knowledge[{name!r}] must be a kdx.Knowledge or (weight, kdx.Knowledge), got "
                    f"{type(component).__name__}"
                )
            if not hasattr(component, "student_taps"):
                raise TypeError(
                    f"knowledge[{name!r}]: {type(component).__name__}.__init__ has to call "
                    "super().__init__(student=..., teacher=...), with the taps that it reads"
                )
            if name == "task" or "/" in name or "." in name:
                raise ValueError(f"knowledge name {name!r} is not allowed: not 'task', and no '/' or '.' in it")
            self.weights[name] = weight = float(weight) if isinstance(weight, int | float) else weight
            if not isinstance(weight, float):
                # a tensor, so that a compiled scheme is not traced anew for every value
                start = weight.start if isinstance(weight, Balanced) else weight.at(0, 1)
                self.register_buffer(f"_weight_{name}", torch.tensor(start), persistent=isinstance(weight, Balanced))
            self.knowledge[name] = component

    @property
    @abstractmethod
    def students(self) -> dict[str, nn.Module]:
        """Name -> model that is trained, evaluated and exported. The first one is *the* student."""

    @property
    def components(self) -> dict[str, Knowledge]:
        """The knowledge components by name."""
        return components_in(self.knowledge)

    def output_of(self, student: str) -> Callable[[Any], Tensor] | None:
        """What reads the logits in a student's output, None for the usual ways."""
        return None

    @abstractmethod
    def forward(self, batch: Batch | Any) -> Losses:
        """The losses of one batch (a :class:`kdx.Batch`, or what ``Batch.of`` reads)."""

    def dataset_size(self, samples: int) -> None:
        """Tells the parts that keep something per sample how many samples there are; comes before :meth:`setup`.

        :func:`kdx.fit` calls it where the loader says (see :func:`kdx.training.batches.dataset_size`). The base
        forwards it to every knowledge component.

        Args:
            samples: ``batch.index`` of the training data lies in ``0 .. samples - 1``.
        """
        for part in self.modules():
            if isinstance(part, Knowledge):
                part.dataset_size(samples)

    def batches(self, targets: Tensor, batch_size: int, num_samples: int) -> Iterable[list[int]] | None:
        """How the training rows are put into batches, None for shuffled ones; an experiment asks.

        Args:
            targets: class of every row, ``-100`` without a label.
            batch_size: as the recipe has it.
            num_samples: rows in an epoch of any other scheme, so that all take the same number of steps.

        Returns:
            A ``batch_sampler`` for :class:`torch.utils.data.DataLoader`.
        """
        return None

    def setup(self, batch: Batch | Any) -> None:
        """Builds what depends on the models' shapes (adapters), from one batch. Changes no model.

        :func:`kdx.fit` calls it. In a loop of one's own call it before the optimizer is built, if a component needs
        it; calling it twice does nothing.
        """

    @property
    def ready(self) -> bool:
        """Whether every learnable part exists, so that :meth:`setup` has nothing to build."""
        return all(part.ready for part in self.modules() if isinstance(part, Knowledge))

    @property
    def skips(self) -> bool:
        """Whether a learnable component may sit out a step, so that data parallelism must look for its parameters."""
        learnable = any(
            not part.ready or any(True for _ in part.parameters())
            for part in self.knowledge.modules()
            if isinstance(part, Knowledge)
        )
        return learnable and self.leaves_out

    @property
    def leaves_out(self) -> bool:
        """Whether some steps leave knowledge terms out: those of a teacher that has nothing to teach yet."""
        return any(isinstance(part, Teacher) and not part.teaches for part in self.modules())

    def weight(self, name: str) -> float | Tensor:
        """The weight of a knowledge term now: a number, or a 0-dim tensor if it changes during training."""
        weight = self.weights[name]
        if isinstance(weight, float):
            return weight
        # a copy, since the buffer may move before this step's graph has run backward
        return self.get_buffer(f"_weight_{name}").clone()

    def advance(self, step: int, total: int) -> None:
        """Sets what moves with the steps, as scheduled weights, for step ``step`` (from 0) of ``total``.

        :func:`kdx.fit` calls it before every optimizer step, on data with and without epochs.
        """
        for name, weight in self.weights.items():
            if not isinstance(weight, float | Balanced):
                self.get_buffer(f"_weight_{name}").fill_(weight.at(step, total))

    def epoch_start(self, epoch: int, epochs: int) -> None:
        """An epoch (from 0, of ``epochs``) begins; :func:`kdx.fit` calls it, though not when it resumes amid one.

        A pass over the data of a stream without end is an epoch. Where steps alone end a run, ``epochs`` is what they
        come to at the pace so far.
        """
        for part in self.modules():
            if isinstance(part, Teacher):
                part.epoch_start(epoch, epochs)

    def step_end(self, step: int, total: int) -> None:
        """Optimizer step ``step`` (from 1) of ``total`` has moved the students; :func:`kdx.fit` calls it."""
        for part in self.modules():
            if isinstance(part, Teacher):
                part.step_end(step, total)

    def rebalance(self, norms: Mapping[str, Tensor]) -> None:
        """Moves balanced weights towards their ratio.

        Args:
            norms: term name -> norm of the gradient of the weighted term, as this scheme named it in its losses.
        """
        for name, weight in self.weights.items():
            if isinstance(weight, Balanced):
                terms = [term for term in norms if term.rpartition("/")[2] == name]
                tasks = [norms[task] for term in terms if (task := task_of(term, norms)) in norms]
                if not tasks:
                    raise ValueError(f"the weight of {name!r} is balanced against the task loss, but there is none")
                now = self.get_buffer(f"_weight_{name}")
                pull = torch.stack([norms[term] for term in terms]).mean()
                wanted = now * weight.ratio * torch.stack(tasks).mean() / pull
                moved = weight.momentum * now + (1 - weight.momentum) * wanted
                now.copy_(torch.where(moved.isfinite() & (moved > 0), moved, now))

    def task_term(self, captured: Captured, batch: Batch) -> Tensor | None:
        """The weighted task loss, or None without one or without targets to compare with."""
        if self.task is None or self.task_weight == 0:
            return None
        if batch.targets is None:
            raise ValueError("the scheme has a task loss but the batch has no targets; give targets, or task=None")
        return self.task_weight * self.task(captured.logits, batch.targets)

    def knowledge_terms(
        self, components: Mapping[str, Knowledge], student: Captured, teacher: Captured, batch: Batch
    ) -> dict[str, Tensor]:
        """The weighted term of every component; a weight of 0 switches a term off."""
        terms = {}
        for name, component in components.items():
            if self.weights[name] != 0:
                if component.needs_index and batch.index is None:
                    raise ValueError(
                        f"knowledge {name!r} keeps a store per sample and needs batch.index; let the data set yield "
                        "kdx.Batch(inputs, targets, index)"
                    )
                _check_estimates(name, component, teacher)
                _warn_of_tails(name, component, teacher)
                term = component(student, teacher, batch)
                terms[name] = self.weight(name) * scalar(f"knowledge {name!r} ({type(component).__name__})", term)
        return terms


def components_in(parts: nn.Module) -> dict[str, Knowledge]:
    """The knowledge components of an ``nn.ModuleDict`` by name."""
    assert isinstance(parts, nn.ModuleDict)
    return {name: part for name, part in parts.items() if isinstance(part, Knowledge)}


def own_copies(components: Mapping[str, Knowledge]) -> nn.ModuleDict:
    """Components for one pair of student and teacher, so that no two pairs share adapters and stores."""
    return nn.ModuleDict({name: copy.deepcopy(component) for name, component in components.items()})


def setup_components(
    components: Iterable[Knowledge], student: Callable[[], Captured], teacher: Callable[[], Captured]
) -> None:
    """Runs ``setup`` of the components that want it, on one captured pass of each model."""
    waiting = [component for component in components if not component.ready]
    if waiting:
        with torch.no_grad():
            captured = student().detach(), teacher().detach()
        for component in waiting:
            component.setup(*captured)


def check_ready(components: Mapping[str, Knowledge]) -> None:
    """Raises if a learnable part is missing, which an optimizer built before would never train."""
    for name, component in components.items():
        if not component.ready:
            raise RuntimeError(
                f"knowledge {name!r} builds its adapter from the models' shapes: call scheme.setup(batch) once, "
                "before the optimizer is built (kdx.fit does)"
            )


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Says which knowledge component asked for a tap that cannot be had."""
    try:
        yield
    except CaptureError as error:
        raise CaptureError(f"knowledge {name!r}: {error}") from error


def _check_estimates(name: str, component: Knowledge, teacher: Captured) -> None:
    for tap in component.teacher_taps:
        if tap not in teacher.estimates:
            continue
        temperature = teacher.estimates[tap]
        whose = f"knowledge {name!r} ({type(component).__name__}): the teacher's {tap!r} are"
        if temperature is None:
            raise ValueError(
                f"{whose} combined of sampled classes in a way that is biased; combine them with over='probabilities', "
                "constant weights and the temperature they were sampled at, or store logits or topk instead"
            )
        if not component.accepts_estimate(temperature):
            raise ValueError(
                f"{whose} classes sampled at temperature {temperature:g}, from which soft-targets of that temperature "
                "learn without bias and nothing else does; set that temperature, or store logits or topk instead"
            )


def _warn_of_tails(name: str, component: Knowledge, teacher: Captured) -> None:
    softens = getattr(component, "temperature", None)  # as every component calls it that softens logits
    for tap in component.teacher_taps:
        for stored in sorted(teacher.tails.get(tap, ())):
            if softens is not None and softens != stored:
                weigh = "much" if softens > stored else "little"
                warnings.warn(
                    f"knowledge {name!r} ({type(component).__name__}): softens at temperature {softens:g} the "
                    f"teacher's {tap!r}, top classes stored for temperature {stored:g}; the other classes together "
                    f"weigh too {weigh}: write the store with topk:K@{softens:g}, or set temperature {stored:g}",
                    StoreWarning,
                    stacklevel=2,
                )


def _task(task: Task) -> tuple[float, TaskFn | None]:
    if task is None:
        return 0.0, None
    weight, fn = task if isinstance(task, tuple) else (1.0, task)
    if not callable(fn):
        raise TypeError(f"task must be fn, (weight, fn) or None, with fn(logits, targets); got {task!r}")
    return float(weight), fn
