"""The base of all schemes."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdx.batch import Batch
from kdx.blame import blaming
from kdx.capture import LOGITS, Captured, Taps, logits_of
from kdx.errors import CaptureError, nearest
from kdx.head import Head
from kdx.knowledge.base import Knowledge
from kdx.knowledge.cross_entropy_beside import CrossEntropyBeside
from kdx.knowledge.function import KnowledgeFn, as_knowledge
from kdx.losses import Count, Counted, Losses, LossTerm, Mean, Over, OverHead, OverOwn, mean_of, scalar, tasks_of
from kdx.ranges import check_number
from kdx.responses import Responses
from kdx.schemes.phase import Phase
from kdx.schemes.task_count import check_task, elements, labelled, responses_of, task_count
from kdx.schemes.torch_losses import checks_of
from kdx.schemes.weights import Balanced, Weight, never_weighs
from kdx.tasks.classification import cross_entropy
from kdx.tasks.heads import Heads
from kdx.teachers import Teacher

__all__ = ["KnowledgeTerms", "Scheme", "Task", "TaskFn"]

TaskFn = Callable[[Tensor, Any], Tensor | tuple[Tensor, Count]]
"""``(logits, targets) -> scalar``, or ``(value, count)``: a mean, and what it was taken over."""

Task = TaskFn | tuple[float, TaskFn] | None
"""The task loss with its weight; a function alone weighs 1, None means no task loss."""

KnowledgeTerms = Mapping[str, Knowledge | KnowledgeFn | tuple[Weight, Knowledge | KnowledgeFn]]
"""Term name -> component, or weight and component; a weight is a number or a schedule of :mod:`kdx.schemes.weights`.
A plain function of the outputs of student and teacher is taken too, see :class:`kdx.knowledge.FunctionKnowledge`."""


class Scheme(nn.Module, ABC):
    """Who teaches whom. Calling it on a batch gives the losses; :func:`kdx.fit` trains it, any loop can.

    A scheme holds the students as submodules, the teachers and the weighted terms. It owns the
    isolation of gradients and keeps teachers in their mode. The task loss is its own, not a knowledge component.

    Args:
        task: ``(weight, fn)``, ``fn`` alone or None; ``fn(logits, targets)`` is a mean. What it is a mean over is
            understood of the tasks of kdx and of torch's losses, with their ``weight`` and ``ignore_index``
            (:func:`kdx.schemes.task_count.task_count`); any other function may return ``(value, count)``, else it
            counts as a mean over the targets that are not ``-100``. The default is cross-entropy, 0 for a batch without
            labels. A weight of 0 leaves the task out: nothing is learned from labels. Models with several outputs have
            the task :class:`kdx.tasks.Heads`.
        knowledge: name -> ``(weight, component)`` or component alone (weight 1). A function of the outputs of student
            and teacher, or one of torch's losses by element, is taken too (:class:`kdx.knowledge.FunctionKnowledge`).

    Raises:
        ValueError: a weight is negative, NaN or infinite, that of a knowledge term is 0 in every step, or it reads
            ``logits`` where the task has heads.
    """

    task_tap: str = LOGITS
    """The tap in a student whose outputs the task loss reads; evaluation reads the model's own output."""

    trains_teacher: ClassVar[bool] = False
    """Whether the teacher is trained along; an experiment then hands over a new model and no stage trains it first."""

    def __init__(self, *, task: Task = cross_entropy, knowledge: KnowledgeTerms | None = None) -> None:
        super().__init__()
        self.task_weight, self.task = _task(task)
        self.responses = responses_of(self.task)
        self.weights: dict[str, Weight] = {}
        self.knowledge = nn.ModuleDict()
        for name, term in (knowledge or {}).items():
            weight, component = term if isinstance(term, tuple) else (1.0, term)
            component = as_knowledge(f"knowledge[{name!r}]", component)
            if not hasattr(component, "student_taps"):
                raise TypeError(
                    f"knowledge[{name!r}]: {type(component).__name__}.__init__ has to call "
                    "super().__init__(student=..., teacher=...), with the taps that it reads"
                )
            if name == "task" or "/" in name or "." in name or hasattr(nn.ModuleDict, name):
                raise ValueError(
                    f"knowledge name {name!r} is not allowed: not 'task', no '/' or '.' in it, and no name of a method "
                    "of torch.nn.ModuleDict, as 'values'"
                )
            self.weights[name] = weight = _checked(f"the weight of knowledge {name!r}", weight)
            if never_weighs(weight):
                raise ValueError(
                    f"knowledge {name!r} ({type(component).__name__}) has the weight {weight} and would teach "
                    "nothing in any step; leave the term out (null in a recipe), or give a schedule that starts at 0"
                )
            if not isinstance(weight, float):
                # a tensor, so that a compiled scheme is not traced anew for every value
                start = weight.start if isinstance(weight, Balanced) else weight.at(0, 1)
                self.register_buffer(f"_weight_{name}", torch.tensor(start), persistent=isinstance(weight, Balanced))
            try:
                component.bind(self._responses_at(component))
            except ValueError as error:
                raise ValueError(f"knowledge {name!r}: {error}") from error
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
        """Returns the function that reads the logits in a student's output, None for the usual ways."""
        return None

    def head_of(self, student: str) -> Head | None:
        """Returns what a student's logits are made of, where they are not held whole; None where they are."""
        return None

    def reader(self, student: str) -> Callable[[Any], Any]:
        """Returns the function that reads in a student's output what the task takes: logits, or those of each head."""
        return self.task.read if isinstance(self.task, Heads) else self.output_of(student) or logits_of

    @property
    def task_taps(self) -> tuple[str, ...]:
        """The taps in a student that the task reads; a scheme captures them in every model that it trains."""
        if isinstance(self.task, Heads):
            return tuple(self.task.taps.values())
        return (LOGITS,) if self.task_tap == LOGITS else (LOGITS, self.task_tap)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The parts of a step, in turn; :func:`kdx.fit` takes every phase for each window of micro-batches."""
        parameters = tuple(parameter for parameter in self.parameters() if parameter.requires_grad)
        return (Phase("train", self.terms, parameters),)

    def terms(self, batch: Batch) -> Mapping[str, LossTerm]:
        """The weighted terms of the losses of one batch; a subclass writes it.

        Args:
            batch: a :class:`kdx.Batch`, whatever :meth:`forward` was called with.

        Returns:
            Name -> term: a :class:`kdx.Mean` as :meth:`task_terms` and :meth:`knowledge_terms` give it,
            ``(value, count)``, or a scalar, which is a mean over the samples of the batch.
        """
        phases = [phase.name for phase in self.phases]
        if len(phases) > 1:
            raise ValueError(
                f"{type(self).__name__} trains in phases, so name one: scheme(batch, phase) with one of {phases}; "
                "Scheme.only shows a loop of one's own"
            )
        raise NotImplementedError(f"{type(self).__name__} has to define terms(batch), which returns name -> term")

    def forward(self, batch: Batch | Any, phase: str | None = None) -> Losses:
        """The losses of one batch.

        Args:
            batch: a :class:`kdx.Batch`, or what ``Batch.of`` reads.
            phase: name of one of :attr:`phases`; may be left out where there is one.

        Raises:
            ValueError: there is no such phase, or there are several and none was named.
            RuntimeError: a component is not ready: :meth:`setup` was not called.
        """
        terms = self.terms if phase is None else self._phase(phase).terms
        batch = Batch.of(batch)
        self.check_ready()
        if type(self).__module__.startswith("kdx."):
            found = terms(batch)
        else:
            with blaming("the scheme", self):
                found = terms(batch)
        return Losses.of(found, rows=batch.rows)

    def _phase(self, name: str) -> Phase:
        phases = {phase.name: phase for phase in self.phases}
        if name not in phases:
            raise ValueError(f"{type(self).__name__} has no phase {name!r}; {nearest(name, phases)}")
        return phases[name]

    @contextmanager
    def only(self, phase: Phase) -> Iterator[None]:
        """Within it only the parameters of ``phase`` ask for a gradient, so that no others get one.

        :func:`kdx.fit` does this; in a loop of one's own::

            for batch in loader:
                for phase in scheme.phases:
                    with scheme.only(phase):
                        scheme(batch, phase.name).total.backward()
                    optimizers[phase.name].step()  # over phase.parameters
                    optimizers[phase.name].zero_grad()
        """
        own = {id(parameter) for parameter in phase.parameters}
        others = [parameter for parameter in self.parameters() if parameter.requires_grad and id(parameter) not in own]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    @property
    def counted(self) -> tuple[Counted, ...]:
        """The things that terms may be means over, as far as :meth:`count` tells how many there are."""
        parts = self.knowledge.named_modules()
        found = [OverOwn(path) for path, part in parts if isinstance(part, Knowledge) and part.counts_batch]
        if not isinstance(self.task, Heads):
            return (*Over, *found)
        own = (Over.TASK, Over.LABELLED, Over.ELEMENTS)
        return (*Over, *found, *(OverHead(over, head) for head in self.task.heads for over in own))

    def count(self, over: Counted, batch: Batch) -> Count:
        """How many there are in a batch of what terms are means over; :func:`kdx.fit` asks before any model runs."""
        task = self.task
        if isinstance(over, OverOwn):
            component = self.knowledge.get_submodule(over.component)
            assert isinstance(component, Knowledge)  # as `counted` found it
            with blaming(f"knowledge {over.component!r}", component):
                return component.count(batch)
        if isinstance(over, OverHead):
            assert isinstance(task, Heads)  # nothing else counts heads
            batch, task, over = self._of_head(over.head, batch), task.heads[over.head].task, over.over
        if over is Over.TASK:
            with blaming("the task", task):
                return 0 if task is None else task_count(task, batch)
        if over is Over.LABELLED:
            return labelled(batch, task)
        return elements(batch) if over is Over.ELEMENTS else batch.rows

    def check_ready(self) -> None:
        """Checks that every learnable part exists; an optimizer that was built before would never train it.

        Raises:
            RuntimeError: one is missing; the component is named.
        """
        for path, part in self.knowledge.named_modules():
            if isinstance(part, Knowledge) and not part.ready:
                raise RuntimeError(
                    f"knowledge {path.rpartition('.')[2]!r} builds its adapter from the models' shapes: call "
                    "scheme.setup(batch) once, before the optimizer is built (kdx.fit does)"
                )

    def dataset_size(self, samples: int) -> None:
        """Tells the parts that keep something per sample how many samples there are; comes before :meth:`setup`.

        :func:`kdx.fit` calls it where the loader says (see :func:`kdx.training.dataset_facts.dataset_size`). The base
        forwards it to every knowledge component.

        Args:
            samples: ``batch.index`` of the training data lies in ``0 .. samples - 1``.
        """
        for part in self.modules():
            if isinstance(part, Knowledge):
                part.dataset_size(samples)

    def dataset_labels(self, labels: Tensor) -> None:
        """Tells the parts that compare classes what class every training sample is of; comes before :meth:`setup`.

        :func:`kdx.fit` calls it where the loader says (see :func:`kdx.training.dataset_facts.dataset_labels`). The base
        forwards it to every knowledge component.

        Args:
            labels: int64 ``[samples]``, at the places that ``batch.index`` names; ``-100`` where it is unknown.
        """
        for part in self.modules():
            if isinstance(part, Knowledge):
                part.dataset_labels(labels)

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

    def feed(self, train: Iterable[Any]) -> Iterable[Any]:
        """The batches that are trained on, made of a loader's; :func:`kdx.fit` asks once, before anything runs.

        A scheme whose batches depend on its models, as on what the student writes itself, gives a
        :class:`kdx.datasets.BatchMaker` around the loader; all others give the loader back.

        Args:
            train: what :func:`kdx.fit` was given, of several processes the share of this one.
        """
        return train

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
                now = check_number(
                    f"the weight of knowledge {name!r} in step {step + 1} of {total}",
                    weight.at(step, total),
                    least=0,
                    instead=f"its schedule is {weight}",
                )
                self.get_buffer(f"_weight_{name}").fill_(now)

    def epoch_start(self, epoch: int, epochs: int) -> None:
        """An epoch (from 0, of ``epochs``) begins; :func:`kdx.fit` calls it, though not when it resumes amid one.

        A pass over the data of a stream without end is an epoch. Where steps alone end a run, ``epochs`` is what they
        come to at the pace so far.
        """
        for part in self.modules():
            if isinstance(part, Teacher | Knowledge):
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
                terms = [term for term in norms if term.rpartition("/")[2] == name and "task" not in term.split("/")]
                tasks = [norms[task] for term in terms for task in tasks_of(term, norms) if self._beside(name, task)]
                if not tasks:
                    which = "that of its head" if isinstance(self.task, Heads) else "the task loss"
                    raise ValueError(f"the weight of {name!r} is balanced against {which}, but there is none")
                now = self.get_buffer(f"_weight_{name}")
                pull = torch.stack([norms[term] for term in terms]).mean()
                wanted = now * weight.ratio * torch.stack(tasks).mean() / pull
                moved = weight.momentum * now + (1 - weight.momentum) * wanted
                now.copy_(torch.where(moved.isfinite() & (moved > 0), moved, now))

    def task_terms(
        self, captured: Captured, batch: Batch, *, of: str | None = None, weight: float | None = None
    ) -> dict[str, Mean]:
        """The weighted task loss of a model: ``task``, or ``task/<head>`` of every head; nothing without a task.

        Args:
            captured: a pass of the model that captured :attr:`task_taps`.
            batch: of that pass.
            of: the student whose loss it is, where there are several: the terms are ``<student>/task``.
            weight: instead of the task's own.

        Raises:
            ValueError: the batch has no targets, or none for a head.
        """
        task, weight = self.task, self.task_weight if weight is None else weight
        if task is None or weight == 0:
            return {}
        if batch.targets is None:
            raise ValueError("the scheme has a task loss but the batch has no targets; give targets, or task=None")
        name = "task" if of is None else f"{of}/task"
        with blaming("the task", task):
            if isinstance(task, Heads):
                found = task.losses({head: captured[tap] for head, tap in task.taps.items()}, batch.targets)
                return {
                    f"{name}/{head}": _on_head(head, mean).scaled(weight * task.heads[head].weight)
                    for head, mean in found.items()
                }
            takes_held = getattr(task, "takes_held", False)
            outputs = captured.response(self.task_tap) if takes_held else captured[self.task_tap]
            loss = self._task_loss(task, outputs, batch.targets)
        mean = mean_of("the task loss", loss)
        if mean is None:
            mean = Mean(scalar("the task loss", loss), self.count(Over.TASK, batch), Over.TASK)
        return {name: mean.scaled(weight)}

    def _task_loss(self, task: TaskFn, outputs: Any, targets: Any) -> Any:
        try:
            return task(outputs, targets)
        except (RuntimeError, ValueError, IndexError):  # perhaps there is a better sentence
            if not torch.compiler.is_compiling() and outputs.device.type == "cpu" and (checks := checks_of(task)):
                checks.check(outputs, targets)
            raise

    def knowledge_terms(
        self,
        components: Mapping[str, Knowledge],
        student: Captured,
        teacher: Captured,
        batch: Batch,
        *,
        beside: tuple[str, CrossEntropyBeside] | None = None,
    ) -> dict[str, Mean]:
        """The weighted term of every component.

        Args:
            components: by name.
            student: a pass that captured their taps.
            teacher: likewise.
            batch: of both passes.
            beside: name of the component that computes the task's cross-entropy along, see
                :func:`kdx.schemes.shared_head.shared`.
        """
        terms = {}
        for name, component in components.items():
            if component.needs_index and batch.index is None:
                raise ValueError(
                    f"knowledge {name!r} keeps a store per sample and needs batch.index; let the data set yield "
                    "kdx.Batch(inputs, targets, index)"
                )
            what = f"knowledge {name!r} ({type(component).__name__})"
            for tap in component.teacher_taps:
                for provenance in teacher.provenance.get(tap, ()):
                    provenance.check(what, tap, component)
            head = self._head_of(component)
            given = batch if head is None else self._of_head(head, batch)
            weight = self.weight(name)
            with blaming(f"knowledge {name!r}", component):
                along: dict[str, Any] = {} if beside is None or beside[0] != name else {"beside": beside[1]}
                if component.takes_weight:
                    along["weight"], weight = weight, 1.0
                loss = component(student, teacher, given, **along)
            if (term := mean_of(what, loss)) is None:
                over = component.mean_over(student, given)
                if not isinstance(over, Over):
                    term = Mean(scalar(what, loss), over)
                else:
                    known = over if head is None else _over_head(head, over)
                    term = Mean(scalar(what, loss), self.count(known, batch), known)
            elif head is not None:
                term = _on_head(head, term)
            elif component.counts_batch and term.over is None:
                paths = (path for path, part in self.knowledge.named_modules() if part is component)
                term = term._replace(over=next(map(OverOwn, paths), None))
            terms[name] = term if isinstance(weight, float) and weight == 1.0 else term.scaled(weight)
        return terms

    def _responses_at(self, component: Knowledge) -> Responses:
        """The facts of the outputs that a component reads."""
        task = self.task
        if not isinstance(task, Heads):
            return self.responses
        if LOGITS in component.student_taps:
            tap = next(iter(task.taps.values()))
            raise ValueError(
                f"{type(component).__name__} reads {LOGITS!r}, and the task has several heads; let it read one of them "
                f"with student={tap!r} and teacher={tap!r} ({', '.join(task.taps.values())})"
            )
        found = [responses for tap in component.student_taps if (responses := task.responses_at(tap)) is not None]
        return found[0] if len(found) == 1 else task.responses

    def _head_of(self, component: Knowledge) -> str | None:
        """The one head whose outputs a component reads, None for other components."""
        return self.task.head_at(component.responses.tap) if isinstance(self.task, Heads) else None

    def _of_head(self, head: str, batch: Batch) -> Batch:
        """A batch with the targets of one head."""
        assert isinstance(self.task, Heads)  # nothing else has heads
        return batch._replace(targets=self.task.target_of(head, batch.targets))

    def _beside(self, name: str, task: str) -> bool:
        """Whether a task loss is the one that a component is balanced against: of heads that of its own."""
        if not isinstance(self.task, Heads):
            return True
        heads = {
            self._head_of(part)
            for path, part in self.knowledge.named_modules()
            if isinstance(part, Knowledge) and path.rpartition(".")[2] == name
        }
        return task.rpartition("/")[2] in heads


def _on_head(head: str, term: Mean) -> Mean:
    """A mean over the targets of one head."""
    return term._replace(over=None if term.over is None else _over_head(head, term.over))


def _over_head(head: str, over: Counted) -> Counted:
    """The same things among the targets of one head."""
    return OverHead(over, head) if isinstance(over, Over) and over is not Over.ROWS else over


def components_in(parts: nn.Module) -> dict[str, Knowledge]:
    """The knowledge components of an ``nn.ModuleDict`` by name."""
    assert isinstance(parts, nn.ModuleDict)
    return {name: part for name, part in parts.items() if isinstance(part, Knowledge)}


def own_copies(components: Mapping[str, Knowledge]) -> nn.ModuleDict:
    """Components for one pair of student and teacher, so that no two pairs share adapters and stores."""
    return nn.ModuleDict({name: copy.deepcopy(component) for name, component in components.items()})


def setup_components(
    components: Mapping[str, Knowledge], student: Callable[[], Captured], teacher: Callable[[], Captured]
) -> None:
    """Runs ``setup`` of the components, by name, that want it, on one captured pass of each model."""
    waiting = {name: component for name, component in components.items() if not component.ready}
    if waiting:
        with torch.no_grad():
            captured = student().detach(), teacher().detach()
        for name, component in waiting.items():
            with blaming(f"knowledge {name!r}", component):
                component.setup(*captured)


def tap_components(components: Mapping[str, Knowledge], student: Taps, teacher: Teacher) -> None:
    """Lets student and teacher capture what the components read in them.

    Raises:
        CaptureError: a component taps a layer that one of them does not have; the component is named.
        ValueError: it reads logits that are not made whole, see :func:`check_takes_held`.
    """
    for name, component in components.items():
        with naming(name):
            student.add(component.student_taps)
            teacher.tap(component.teacher_taps)
        check_takes_held(name, component, student.held_taps, teacher.held_taps)


def check_takes_held(name: str, component: Knowledge, student: frozenset[str], teacher: frozenset[str]) -> None:
    """Checks that a component does not read the tensors of taps that are never made.

    Args:
        name: of the component.
        component: it.
        student: the student's taps that are held without tensors.
        teacher: likewise of the teacher.

    Raises:
        ValueError: it reads one, and takes no :class:`kdx.LinearLogits`.
    """
    if component.takes_held:
        return
    for side, taps, held in (
        ("student", component.student_taps, student),
        ("teacher", component.teacher_taps, teacher),
    ):
        if wrong := [tap for tap in taps if tap in held]:
            raise ValueError(
                f"knowledge {name!r} ({type(component).__name__}) reads the tensor of the {side}'s {wrong[0]!r}, and "
                "kdx.Head says that it is held as hidden states and a head, so that it is never made; soft-targets, "
                f"reverse-kl, jsd and alm take it so. Take one of those, or leave the head out of the {side}'s output"
            )


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Says which knowledge component asked for a tap that cannot be had."""
    try:
        yield
    except CaptureError as error:
        raise CaptureError(f"knowledge {name!r}: {error}") from error


def _task(task: Task) -> tuple[float, TaskFn | None]:
    if task is None:
        return 0.0, None
    weight, fn = task if isinstance(task, tuple) else (1.0, task)
    check_task(fn)
    return check_number("the weight of the task", weight, least=0), fn


def _checked(what: str, weight: Any) -> Weight:
    """The weight of a term: a number as a float, a schedule as it is."""
    if callable(getattr(weight, "at", None)) or isinstance(weight, Balanced):
        schedule: Weight = weight
        return schedule
    return check_number(what, weight, least=0, instead="give such a number, or a schedule of kdx.schemes as Warmup")
