"""Checks of a knowledge component: what it reads, what it returns and where gradients go."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from kdx.batch import IGNORE, Batch
from kdx.capture import LOGITS, Captured
from kdx.knowledge.base import Knowledge
from kdx.losses import Over, mean_of
from kdx.options import options_of
from kdx.testing import knowledge_numerics as numerics
from kdx.testing import knowledge_state as state
from kdx.testing.check import Check, bind, fail, require, run_all
from kdx.testing.samples import Sample, declared, draw, loss_and_gradients, prepared, same, value_of
from kdx.testing.tags import KnowledgeTags

__all__ = ["check_knowledge", "knowledge_checks"]


def check_knowledge(
    component: Knowledge, *, tags: KnowledgeTags | None = None, expected_failures: Mapping[str, str] | None = None
) -> None:
    """Runs every check that applies to a knowledge component.

    Args:
        component: an instance, set up or not; it is left as it is.
        tags: what it declares about itself, see :class:`KnowledgeTags`.
        expected_failures: check name -> why it is known not to hold. One that holds after all is an error.

    Raises:
        CheckFailed: a check does not hold; the message names each and what it found.

    Example:
        >>> import kdx
        >>> check_knowledge(kdx.SoftTargets(temperature=2.0), tags=KnowledgeTags(zero_when_equal=True))
    """
    run_all(knowledge_checks(component, tags=tags, expected_failures=expected_failures))


def knowledge_checks(
    component: Knowledge, *, tags: KnowledgeTags | None = None, expected_failures: Mapping[str, str] | None = None
) -> list[Check]:
    """The checks that apply to a knowledge component."""
    if not isinstance(component, Knowledge):
        raise TypeError(f"component: expected an instance of kdx.Knowledge, got {component!r}; give an object of it")
    resolved = (tags or KnowledgeTags()).resolved(component)
    functions = list(_applicable(component, resolved))
    return bind(type(component).__name__, functions, component, resolved, expected_failures=expected_failures)


def _applicable(component: Knowledge, tags: KnowledgeTags) -> Iterator[Callable[[Knowledge, KnowledgeTags], None]]:
    yield check_documented
    yield state.check_copies
    yield state.check_pickles
    yield state.check_learnable_parts
    yield state.check_state_dict
    yield check_finite_scalar
    yield check_gradient_reaches_the_student
    yield check_gradient_reaches_learnable_parts
    yield check_inputs_unchanged
    yield check_same_seed_same_loss
    yield check_reads_only_its_taps
    yield check_index
    yield check_batch_of_one
    yield check_unlabelled_rows
    yield check_without_targets
    if component.kind == "response" and component.student_taps == component.teacher_taps == (LOGITS,):
        yield check_dense_logits
    if tags.batch_order_invariant:
        yield check_batch_order
    if tags.mean_over_samples:
        yield check_parts_add_up
    if tags.zero_when_equal:
        yield check_zero_when_equal
    yield numerics.check_gradient_is_right
    yield numerics.check_half_precision
    yield numerics.check_autocast
    yield numerics.check_compiles


def check_documented(component: Knowledge, tags: KnowledgeTags) -> None:
    """The class's docstring describes every option, gives shapes as ``[N, ...]``, an example and a paper with year and
    link.
    """
    text = inspect.cleandoc(type(component).__dict__.get("__doc__") or "")
    require(bool(text), "the class has no docstring of its own")
    if missing := [option.name for option in options_of(type(component)) if not option.doc]:
        fail(f"the docstring says nothing of the options {missing}; give each a line under 'Args:'")
    for what, pattern in (
        ("shape such as [N, C]", r"\[N\b"),
        ("paper, as a line that starts with 'Paper: '", r"(?m)^Paper: "),
        ("year", r"\b(19|20)\d\d\b"),
        ("link", r"https?://"),
        ("example, under 'Example:'", r"(?m)^Example:\n"),
    ):
        require(re.search(pattern, text) is not None, f"the docstring has no {what}")


def check_finite_scalar(component: Knowledge, tags: KnowledgeTags) -> None:
    """The loss of float32 features is one finite float32 number, in training and in evaluation mode."""
    sample = draw(component, tags)
    ready = prepared(component, sample)
    for mode in (True, False):
        loss, _ = loss_and_gradients(ready.train(mode), sample)
        require(loss.dtype == torch.float32, f"the loss of float32 features is {loss.dtype}")
        require(bool(torch.isfinite(loss)), f"the loss is {loss.item()} with training={mode}")


def check_gradient_reaches_the_student(component: Knowledge, tags: KnowledgeTags) -> None:
    """Every feature of the student that the component taps gets a finite gradient that is not 0."""
    sample = draw(component, tags)
    _, gradients = loss_and_gradients(prepared(component, sample), sample)
    for name in declared(component.student_taps, sample.student):
        gradient = gradients[name]
        require(bool(gradient.isfinite().all()), f"the gradient in {name!r} is not finite")
        require(bool(gradient.count_nonzero()), f"no gradient reaches {name!r}; is it detached, or not used?")


def check_gradient_reaches_learnable_parts(component: Knowledge, tags: KnowledgeTags) -> None:
    """Every parameter of the component that asks for a gradient gets one."""
    sample = draw(component, tags)
    ready = prepared(component, sample)
    loss: Tensor = value_of(ready(sample.student, sample.teacher, sample.batch))
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in ready.named_parameters():
        if parameter.requires_grad:
            require(parameter.grad is not None, f"no gradient reaches its parameter {name!r}")


def check_inputs_unchanged(component: Knowledge, tags: KnowledgeTags) -> None:
    """Neither the captured features nor the batch are changed."""
    sample = draw(component, tags)
    before = copy.deepcopy(sample)
    loss_and_gradients(prepared(component, sample), sample)  # the leaves are copies; the teacher's tensors are not
    held = {name: value.clone() for name, value in sample.student.items()}
    prepared(component, sample)(sample.student.having(held), sample.teacher, sample.batch)
    for side, now, kept in (("student", held, before.student), ("teacher", sample.teacher, before.teacher)):
        require(now.keys() == kept.keys(), f"the captured features of the {side} have other names after the call")
        for name, value in now.items():
            require(torch.equal(value, kept[name]), f"the {side}'s {name!r} was changed in place")
    for what in ("targets", "index"):
        now_, kept_ = getattr(sample.batch, what), getattr(before.batch, what)
        if isinstance(now_, Tensor):
            require(torch.equal(now_, kept_), f"batch.{what} was changed in place")


def check_same_seed_same_loss(component: Knowledge, tags: KnowledgeTags) -> None:
    """With the same seed, copies in the same state give the same bits of loss and gradients."""
    sample = draw(component, tags)
    runs = [loss_and_gradients(prepared(component, sample), sample) for _ in range(3)]
    for other in runs[1:]:
        require(same(runs[0], other), f"losses {runs[0][0].item()!r} and {other[0].item()!r} or their gradients differ")


class _Recorder(Captured):
    """Writes down which taps are read."""

    def __init__(self, captured: Captured) -> None:
        others = {"another tap": torch.zeros(captured.logits.shape)}
        super().__init__({**captured, **others}, captured.patterns)
        self.read: set[str] = set()

    @override
    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:  # dict's
        self.read.add(name)
        return super().get(name, default)

    def _all(self) -> None:
        self.read.update(self)

    def values(self) -> Any:
        self._all()
        return super().values()

    def items(self) -> Any:
        self._all()
        return super().items()


def check_reads_only_its_taps(component: Knowledge, tags: KnowledgeTags) -> None:
    """It reads the taps that it declares in ``student_taps`` and ``teacher_taps``, all of them, and no other but the
    logits, which are always there.
    """
    sample = draw(component, tags)
    ready = prepared(component, sample)
    sides = _Recorder(sample.student), _Recorder(sample.teacher)
    ready(*sides, sample.batch)
    for name, side, taps in zip(
        ("student", "teacher"), sides, (component.student_taps, component.teacher_taps), strict=True
    ):
        allowed = set(declared(taps, side))
        if undeclared := side.read - allowed - {LOGITS}:
            fail(f"it reads {sorted(undeclared)} of the {name}, which {name}_taps does not declare")
        if unread := allowed - side.read:
            fail(f"{name}_taps declares {sorted(unread)}, which it never reads; each tap costs a hook")


def check_index(component: Knowledge, tags: KnowledgeTags) -> None:
    """Without ``batch.index`` it works, or, if it declares ``needs_index``, raises a ValueError that says so."""
    sample = draw(component, tags)
    ready = prepared(component, sample)
    require(
        component.needs_index == tags.needs_index,
        f"needs_index is {component.needs_index}, tags say {tags.needs_index}",
    )
    batch = sample.batch._replace(index=None)
    try:
        ready(sample.student, sample.teacher, batch)
    except ValueError as error:
        require("index" in str(error), f"without batch.index it raised a ValueError that does not say so: {error}")
        require(bool(tags.needs_index), "without batch.index it raised a ValueError; declare needs_index = True")
    except (AttributeError, TypeError) as error:
        fail(f"without batch.index it raised {type(error).__name__}: {error}; declare needs_index and check for it")
    else:
        require(not tags.needs_index, "it declares needs_index but works without; does it read it?")


def check_batch_of_one(component: Knowledge, tags: KnowledgeTags) -> None:
    """A batch of one sample gives a finite loss with finite gradients, or a ValueError."""
    sample = draw(component, tags)
    ready = prepared(component, sample)
    try:
        loss, gradients = loss_and_gradients(ready, sample.at(slice(0, 1)))
    except ValueError:
        return
    require(bool(loss.isfinite()), f"the loss is {loss.item()}")
    for name, gradient in gradients.items():
        require(bool(gradient.isfinite().all()), f"the gradient in {name!r} is not finite")


def check_unlabelled_rows(component: Knowledge, tags: KnowledgeTags) -> None:
    """Samples whose target is ``-100``, some or all of a batch, leave the loss and its gradients finite."""
    sample = draw(component, tags)
    targets = sample.batch.targets
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return
    for unlabelled in (len(targets) // 2, len(targets)):
        hidden = targets.clone()
        hidden[:unlabelled] = IGNORE
        part = sample._replace(batch=sample.batch._replace(targets=hidden))
        loss, gradients = loss_and_gradients(prepared(component, sample), part)
        what = f"with {unlabelled} of {len(targets)} samples unlabelled ({IGNORE})"
        require(bool(loss.isfinite()), f"{what} the loss is {loss.item()}")
        for name, gradient in gradients.items():
            require(bool(gradient.isfinite().all()), f"{what} the gradient in {name!r} is not finite")


def check_without_targets(component: Knowledge, tags: KnowledgeTags) -> None:
    """Without ``batch.targets`` it works, or raises a ValueError that says that it needs labels or targets."""
    sample = draw(component, tags)
    part = sample._replace(batch=sample.batch._replace(targets=None))
    try:
        loss, _ = loss_and_gradients(prepared(component, sample), part)
    except ValueError as error:
        require(
            "label" in str(error) or "target" in str(error),
            f"without batch.targets it raised a ValueError that says nothing of labels or targets: {error}",
        )
    except (AttributeError, TypeError) as error:
        fail(f"without batch.targets it raised {type(error).__name__}: {error}; look whether there are any")
    else:
        require(bool(loss.isfinite()), f"without batch.targets the loss is {loss.item()}")


def check_dense_logits(component: Knowledge, tags: KnowledgeTags) -> None:
    """Logits ``[N, C, H, W]``, whose classes are on axis 1, give the loss and the gradients that their pixels give as
    samples ``[N H W, C]``, or are refused with a ValueError.
    """
    flat = draw(component, tags, torch.float64)
    if flat.student.logits.dim() != 2 or len(flat.student.logits) % 2 or flat.batch.targets is None:
        return
    ready = prepared(component, flat, torch.float64)
    loss, gradients = loss_and_gradients(copy.deepcopy(ready), flat)

    def dense(x: Tensor) -> Tensor:
        return x.reshape(-1, 2, 1, *x.shape[1:]).movedim(3, 1) if x.dim() == 2 else x.reshape(-1, 2, 1)

    student, teacher = (
        Captured({**side, LOGITS: dense(side.logits)}, side.patterns) for side in (flat.student, flat.teacher)
    )
    index = None if flat.batch.index is None else flat.batch.index[::2]
    sample = Sample(student, teacher, Batch(None, dense(flat.batch.targets), index))
    try:
        found, moved = loss_and_gradients(ready, sample)
    except ValueError:
        return
    require(
        torch.allclose(found, loss, rtol=1e-9, atol=1e-12),
        f"the loss of logits [N, C, H, W] is {found.item():.9g}, and {loss.item():.9g} of their pixels as samples; "
        "kdx.knowledge.Response finds the class axis, or raise a ValueError for logits that are not [N, C]",
    )
    require(
        torch.allclose(moved[LOGITS], dense(gradients[LOGITS]), rtol=1e-7, atol=1e-10),
        "the gradient of logits [N, C, H, W] is not that of their pixels as samples",
    )


def check_batch_order(component: Knowledge, tags: KnowledgeTags) -> None:
    """Samples in another order give the same loss, and each sample the same gradient."""
    sample = draw(component, tags, torch.float64)
    ready = prepared(component, sample, torch.float64)
    order = torch.randperm(tags.rows, generator=torch.Generator().manual_seed(2))
    loss, gradients = loss_and_gradients(copy.deepcopy(ready), sample)
    again, moved = loss_and_gradients(ready, sample.at(order))
    require(
        torch.allclose(again, loss, rtol=1e-9, atol=1e-12),
        f"the loss is {loss.item()!r}, and {again.item()!r} for the same samples in another order; if the method "
        "wants that, declare batch_order_invariant = False",
    )
    for name, gradient in gradients.items():
        require(
            torch.allclose(moved[name], gradient[order], rtol=1e-7, atol=1e-10),
            f"the gradient of a sample in {name!r} depends on the order of the batch",
        )


def check_parts_add_up(component: Knowledge, tags: KnowledgeTags) -> None:
    """The loss and the gradient of a batch are the means of those of its parts, weighed by what it says it counts."""
    sample = draw(component, tags, torch.float64)
    targets = sample.batch.targets
    if isinstance(targets, Tensor):  # one part has fewer labels than samples
        unlabelled = targets.clone()
        unlabelled[: len(targets) // 3] = IGNORE
        sample = sample._replace(batch=sample.batch._replace(targets=unlabelled))
    ready = prepared(component, sample, torch.float64).eval()
    loss, gradients = loss_and_gradients(copy.deepcopy(ready), sample)
    total = _count(copy.deepcopy(ready), sample)
    cut = tags.rows // 2 + 1
    together, added = torch.zeros((), dtype=torch.float64), {name: [] for name in gradients}  # type: ignore[var-annotated]
    for rows in (slice(cut), slice(cut, tags.rows)):
        part = sample.at(rows)
        share = _count(copy.deepcopy(ready), part) / total if total else 0.0
        value, found = loss_and_gradients(copy.deepcopy(ready), part)
        together = together + share * value
        for name, gradient in found.items():
            added[name].append(share * gradient)
    require(
        torch.allclose(together, loss, rtol=1e-9, atol=1e-12),
        f"the loss is {loss.item():.9g}, and {together.item():.9g} of the batch in two parts weighed by their counts; "
        "say in over, or by returning (value, count), what it is a mean over. If samples are compared or a statistic "
        "of the batch enters, declare mean_over_samples = False",
    )
    for name, gradient in gradients.items():
        require(
            torch.allclose(torch.cat(added[name]), gradient, rtol=1e-7, atol=1e-10),
            f"the gradients of two parts in {name!r} are not that of the whole batch",
        )


def _count(component: Knowledge, sample: Sample) -> float:
    """Counts what the loss of a batch is a mean over."""
    if (mean := mean_of("the loss", component(sample.student, sample.teacher, sample.batch))) is not None:
        return float(mean.count)
    over = component.mean_over(sample.student, sample.batch)
    if not isinstance(over, Over):
        return float(over)
    if over in (Over.LABELLED, Over.ELEMENTS) and isinstance(sample.batch.targets, Tensor):
        return float((sample.batch.targets != IGNORE).sum() if over is Over.LABELLED else sample.batch.targets.numel())
    return float(len(next(iter(sample.student.values()))))


def check_zero_when_equal(component: Knowledge, tags: KnowledgeTags) -> None:
    """Where the student's features are the teacher's, loss and gradient are 0."""
    sample = draw(component, tags, torch.float64)
    names = [
        declared(taps, side)
        for taps, side in zip((component.student_taps, component.teacher_taps), sample[:2], strict=True)
    ]
    equal = {teacher: sample.student[student].clone() for student, teacher in zip(*names, strict=False)}
    equal.setdefault(LOGITS, sample.student.logits.clone())
    sample = sample._replace(teacher=sample.teacher.having({**sample.teacher, **equal}))
    loss, gradients = loss_and_gradients(prepared(component, sample, torch.float64), sample)
    require(abs(loss.item()) < 1e-12, f"the loss is {loss.item()!r}")
    for name, gradient in gradients.items():
        require(gradient.norm().item() < 1e-7, f"the gradient in {name!r} has norm {gradient.norm().item():.3g}")
