"""Checks of a scheme: what it returns, who gets gradients, what a run of it does."""

from __future__ import annotations

import copy
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdx.batch import IGNORE, Batch
from kdx.errors import PluginError
from kdx.hookspecs import hookimpl
from kdx.losses import Losses
from kdx.schemes.base import Scheme
from kdx.schemes.phase import Phase
from kdx.teachers import Teacher
from kdx.testing.check import Check, bind, fail, require, run_all
from kdx.testing.tags import SchemeTags
from kdx.testing.toys import toy_batches
from kdx.training.loop import fit

__all__ = ["check_scheme", "scheme_checks"]

STEPS = 20
_HOLDERS = (Teacher, nn.ModuleList, nn.ModuleDict)  # their own mode says nothing of the models they hold


def check_scheme(
    scheme: Scheme, *, tags: SchemeTags | None = None, expected_failures: Mapping[str, str] | None = None
) -> None:
    """Runs every check of a scheme.

    Args:
        scheme: an instance on :func:`kdx.testing.toy_model` models, or on others with ``tags.data`` for them; it is
            left as it is.
        tags: on what it is tried, see :class:`SchemeTags`.
        expected_failures: check name -> why it is known not to hold. One that holds after all is an error.

    Raises:
        CheckFailed: a check does not hold; the message names each and what it found.

    Example:
        >>> import kdx
        >>> from kdx.testing import toy_model
        >>> teacher = toy_model(8, seed=1)
        >>> check_scheme(kdx.Offline(toy_model(), teacher, knowledge={"kd": kdx.SoftTargets(2.0)}))
    """
    run_all(scheme_checks(scheme, tags=tags, expected_failures=expected_failures))


def scheme_checks(
    scheme: Scheme, *, tags: SchemeTags | None = None, expected_failures: Mapping[str, str] | None = None
) -> list[Check]:
    """The checks of a scheme."""
    if not isinstance(scheme, Scheme):
        raise TypeError(f"scheme: expected an instance of kdx.Scheme, got {scheme!r}; give an object of it")
    tags = tags or SchemeTags()
    functions = list(_applicable(scheme, tags))
    return bind(type(scheme).__name__, functions, scheme, tags, expected_failures=expected_failures)


def _applicable(scheme: Scheme, tags: SchemeTags) -> Iterator[Callable[[Scheme, SchemeTags], None]]:
    yield check_losses
    yield check_batch_forms
    yield check_setup_changes_no_model
    yield check_gradient_reaches_every_student
    if not scheme.trains_teacher:
        yield check_no_gradient_in_a_teacher
    yield check_students_exchange_no_gradient
    if not scheme.trains_teacher:
        yield check_teachers_keep_their_mode
    yield check_no_shared_state
    yield check_unlabelled_batch
    yield check_without_targets
    yield check_dense_logits
    yield check_frozen_parts
    if tags.mean_over_samples:
        yield check_parts_add_up
    yield check_exact_resume
    yield check_training_lowers_the_loss


def check_losses(scheme: Scheme, tags: SchemeTags) -> None:
    """A batch gives ``Losses``: finite scalar terms, and a total that is their sum and has a graph."""
    ready, batches = _prepared(scheme, tags)
    losses = _losses(ready, batches[0])
    require(isinstance(losses, Losses), f"forward returned {type(losses).__name__}, not kdx.Losses")
    require(bool(losses.terms), "losses.terms is empty")
    for name, term in {"total": losses.total, **losses.terms}.items():
        require(isinstance(term, Tensor) and term.dim() == 0, f"{name} is {term!r}, not a tensor of one number")
        require(bool(term.isfinite()), f"{name} is {term.item()}")
    total = torch.stack([term.detach().double() for term in losses.terms.values()]).sum()
    require(
        torch.allclose(losses.total.detach().double(), total, rtol=1e-5, atol=1e-6),
        f"the total is {losses.total.item()!r}, its terms add up to {total.item()!r}; terms are already weighted",
    )
    require(losses.total.requires_grad, "the total has no graph")


def check_batch_forms(scheme: Scheme, tags: SchemeTags) -> None:
    """It takes a batch as ``kdx.Batch`` and as the tuple that a data loader gives, with the same losses."""
    _, batches = _prepared(scheme, tags)
    batch = Batch.of(batches[0])
    totals = []
    for form in (batch, tuple(batch)):
        ready, _ = _prepared(scheme, tags)
        totals.append(_losses(ready, form).total)
    require(torch.equal(totals[0], totals[1]), f"a Batch gives {totals[0].item()}, a tuple {totals[1].item()}")


def check_setup_changes_no_model(scheme: Scheme, tags: SchemeTags) -> None:
    """``setup`` builds what depends on shapes, leaves every model's weights and mode alone, and may be called twice."""
    ready = copy.deepcopy(scheme).train()
    batches = _batches(tags)
    ready.dataset_size(sum(Batch.of(batch).rows for batch in batches))
    models = {**ready.students, **{f"teacher {n}": model for n, model in enumerate(_teachers(ready))}}
    before = {name: _state(model) for name, model in models.items()}
    modes = {name: model.training for name, model in models.items()}
    ready.setup(batches[0])
    require(ready.ready, "after setup it still says that it is not ready")
    parts = [id(parameter) for parameter in ready.parameters()]
    ready.setup(batches[0])
    require([id(parameter) for parameter in ready.parameters()] == parts, "a second setup replaced or added parameters")
    for name, model in models.items():
        now = _state(model)
        if changed := [key for key in before[name] if not torch.equal(now[key], before[name][key])]:
            fail(f"setup changed {changed} of {name}; run models in evaluation mode and without gradient there")
        require(model.training == modes[name], f"setup left {name} with training={model.training}")


def check_gradient_reaches_every_student(scheme: Scheme, tags: SchemeTags) -> None:
    """``students`` names the models that are trained, and each gets a gradient and is in ``parameters()``."""
    ready, batches = _prepared(scheme, tags)
    require(bool(ready.students), "students is empty")
    _backward(ready, batches[0])
    registered = {id(parameter) for parameter in ready.parameters()}
    for name, student in ready.students.items():
        own = list(student.parameters())
        require(
            all(id(parameter) in registered for parameter in own), f"student {name!r} is no submodule of the scheme"
        )
        reached = [p for p in own if p.grad is not None and p.grad.count_nonzero()]
        require(bool(reached), f"no gradient reaches student {name!r}")
        require(
            all(p.grad is None or bool(p.grad.isfinite().all()) for p in own), f"{name!r}: a gradient is not finite"
        )


def check_no_gradient_in_a_teacher(scheme: Scheme, tags: SchemeTags) -> None:
    """The backward pass leaves no gradient in a teacher, the optimizer has none of its parameters, and a forward pass
    changes none of its numbers.
    """
    ready, batches = _prepared(scheme, tags)
    parts = _teachers(ready)
    before = [_state(teacher) for teacher in parts]
    _backward(ready, batches[0])
    students = {id(p) for student in ready.students.values() for p in student.parameters()}
    trained = {id(p) for p in ready.parameters() if p.requires_grad} - students
    for number, teacher in enumerate(parts):
        for name, parameter in teacher.named_parameters():
            if id(parameter) not in students:
                require(parameter.grad is None, f"teacher {number}: {name!r} got a gradient; run it under no_grad")
                require(id(parameter) not in trained, f"teacher {number}: {name!r} would be given to the optimizer")
        now = _state(teacher)
        if changed := [key for key in now if not torch.equal(now[key], before[number][key])]:
            fail(f"teacher {number}: a training step changed {changed}; is it in training mode?")


def check_students_exchange_no_gradient(scheme: Scheme, tags: SchemeTags) -> None:
    """A term named ``"<student>/..."`` sends no gradient into another student."""
    ready, batches = _prepared(scheme, tags)
    named = ((name, term) for losses in _by_phase(ready, batches[0]) for name, term in losses.terms.items())
    for name, term in named:
        owner = name.partition("/")[0]
        if "/" not in name or owner not in ready.students or not term.requires_grad:
            continue
        mine = {id(parameter) for parameter in ready.students[owner].parameters()}
        for other, student in ready.students.items():
            wanted = [p for p in student.parameters() if p.requires_grad and id(p) not in mine]
            found = torch.autograd.grad(term, wanted, retain_graph=True, allow_unused=True) if wanted else ()
            reached = [gradient for gradient in found if gradient is not None and gradient.count_nonzero()]
            require(not reached, f"term {name!r} sends a gradient into {other!r}; detach what it teaches with")


def check_teachers_keep_their_mode(scheme: Scheme, tags: SchemeTags) -> None:
    """A teacher runs in its own mode whatever ``train()`` and ``eval()`` of the scheme are."""
    ready, batches = _prepared(scheme, tags)
    students = {module for student in ready.students.values() for module in student.modules()}
    found = []
    for mode in (True, False, True):
        ready.train(mode)
        _losses(ready, batches[0])
        parts = [m for teacher in _teachers(ready) for m in teacher.modules() if not isinstance(m, _HOLDERS)]
        found.append([m.training for m in parts if m not in students])
    require(
        found[0] == found[1] == found[2],
        "a teacher's mode follows the scheme's train() and eval(); hold it as kdx.teachers.as_teacher(model)",
    )


def check_no_shared_state(scheme: Scheme, tags: SchemeTags) -> None:
    """A copy gives the same losses, and training it changes nothing in the original."""
    original, batches = _prepared(scheme, tags)
    expected = _losses(copy.deepcopy(original), batches[0])
    before = _state(original)
    twin = copy.deepcopy(original)
    require(torch.equal(_losses(twin, batches[0]).total, expected.total), "a copy gives another loss")
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.1)
    for step, batch in enumerate(batches[:2], start=1):
        optimizer.zero_grad()
        _backward(twin, batch)
        optimizer.step()
        twin.step_end(step, 2)
    now = _state(original)
    if changed := [key for key in now if not torch.equal(now[key], before[key])]:
        fail(f"training a copy changed {changed} of the original")
    again = _losses(original, batches[0])
    require(torch.equal(again.total, expected.total), "training a copy changed the original's loss; state on a class?")


def check_unlabelled_batch(scheme: Scheme, tags: SchemeTags) -> None:
    """A batch in which no sample has a label (``-100``) gives finite terms and gradients, or a ValueError."""
    ready, batches = _prepared(scheme, tags)
    batch = Batch.of(batches[0])
    if not _class_numbers(batch.targets):
        return
    batch = batch._replace(targets=torch.full_like(batch.targets, IGNORE))
    try:
        _backward(ready, batch)
        losses = _losses(ready, batch)
    except ValueError:
        return
    for name, term in losses.terms.items():
        require(bool(term.isfinite()), f"term {name!r} of a batch without labels is {term.item()}")
    for name, parameter in ready.named_parameters():
        gradient = parameter.grad
        require(
            gradient is None or bool(gradient.isfinite().all()),
            f"the gradient of {name!r} is not finite for a batch without labels",
        )


def check_without_targets(scheme: Scheme, tags: SchemeTags) -> None:
    """A batch with ``targets=None`` works, or raises a ValueError that says that labels or targets are missing."""
    ready, batches = _prepared(scheme, tags)
    try:
        losses = _losses(ready, Batch.of(batches[0])._replace(targets=None))
    except ValueError as error:
        require(
            "label" in str(error) or "target" in str(error),
            f"without targets it raised a ValueError that says nothing of labels or targets: {error}",
        )
    except (AttributeError, TypeError) as error:
        fail(f"without targets it raised {type(error).__name__}: {error}; look whether there are any")
    else:
        require(bool(losses.total.isfinite()), f"without targets the total is {losses.total.item()}")


def check_dense_logits(scheme: Scheme, tags: SchemeTags) -> None:
    """Models that give their logits as ``[N, C, 1, 1]`` and targets ``[N, 1, 1]`` have the terms that ``[N, C]`` and
    ``[N]`` have, or are refused with a ValueError.
    """
    if not _class_numbers(Batch.of(_batches(tags)[0]).targets):
        return
    ready, batches = _prepared(scheme, tags)
    expected = _losses(ready, batches[0]).terms
    dense = copy.deepcopy(scheme)
    models = {id(model): model for model in (*dense.students.values(), *_teachers(dense))}
    for model in models.values():
        if not isinstance(model, Teacher):
            model.register_forward_hook(_as_pixels)
    batches = [batch._replace(targets=batch.targets[:, None, None]) for batch in map(Batch.of, batches)]
    try:
        ready, _ = _prepared(dense, replace(tags, data=batches))
        found = _losses(ready, batches[0]).terms
    except ValueError:
        return
    for name, term in expected.items():
        require(name in found, f"term {name!r} is missing where logits are [N, C, 1, 1]")
        require(
            torch.allclose(found[name], term, rtol=1e-4, atol=1e-6),
            f"term {name!r} is {found[name].item():.7g} for logits [N, C, 1, 1] and {term.item():.7g} for the same as "
            "[N, C]; self.responses.axis(logits.shape) says where the classes are, or raise a ValueError",
        )


def _as_pixels(_model: nn.Module, _args: Any, output: Any) -> Any:
    return output[:, :, None, None] if isinstance(output, Tensor) and output.dim() == 2 else output


def _class_numbers(targets: Any) -> bool:
    return isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point()


def check_frozen_parts(scheme: Scheme, tags: SchemeTags) -> None:
    """A parameter of a student that the user froze (``requires_grad_(False)``) gets no gradient, and stays frozen and
    as it is when a step is taken.
    """
    frozen = copy.deepcopy(scheme)
    held: dict[str, Tensor] = {}
    for name, student in frozen.students.items():
        own = [(key, parameter) for key, parameter in student.named_parameters() if parameter.requires_grad]
        if len(own) > 1:
            key, parameter = own[0]
            held[f"{name}.{key}"] = parameter.requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in held.items()}
    batches = _batches(tags)
    fit(frozen, batches, steps=1, optimizer=tags.optimizer, schedule=None, seed=0, device="cpu", progress=False)
    for name, kept in held.items():
        require(not kept.requires_grad, f"{name!r} was frozen and asks for a gradient again")
        require(kept.grad is None, f"{name!r} is frozen and got a gradient")
        require(torch.equal(kept, before[name]), f"{name!r} is frozen and was changed by a step")


def check_parts_add_up(scheme: Scheme, tags: SchemeTags) -> None:
    """Terms and gradients of a batch are the means of those of its parts, weighed by their counts, though the parts
    hold unequal numbers of samples and of labels.
    """
    ready, batches = _prepared(scheme, tags)
    ready.double().eval()
    whole = _half_labelled(Batch.of(batches[0]))
    cuts = [0, whole.rows // 2, whole.rows - 1, whole.rows]
    parts = [whole.at(slice(start, end)) for start, end in itertools.pairwise(cuts) if end > start]
    students = [p for student in ready.students.values() for p in student.parameters() if p.requires_grad]
    for phase in ready.phases:

        def losses(batch: Batch, phase: Phase = phase) -> Losses:
            found: Losses = ready(batch, phase.name)
            return found

        expected = losses(whole)
        found = [losses(part) for part in parts]
        combined = []
        for name, term in expected.terms.items():
            missing = [part.counts for part in found if name not in part.counts]
            require(not missing, f"term {name!r} of a part has no count; make losses with Losses.of(terms, rows=...)")
            counts = [float(part.counts[name]) for part in found]
            total = float(expected.counts[name])
            require(
                math.isclose(sum(counts), total, rel_tol=1e-9),
                f"term {name!r} is a mean over {total:g} in the whole batch and over {counts} in its parts",
            )
            share = [count / total if total else 0.0 for count in counts]
            together = torch.stack([s * part.terms[name].double() for s, part in zip(share, found, strict=True)]).sum()
            require(
                torch.allclose(together, term.double(), rtol=1e-9, atol=1e-12),
                f"term {name!r} is {term.item():.9g}; of the batch in {len(parts)} parts, with counts {counts}, it is "
                f"{together.item():.9g}. Return kdx.Mean(value, count) with what it is a mean over, or declare "
                "SchemeTags(mean_over_samples=False) if samples are compared",
            )
            combined.append(together)
        gradients = [
            torch.autograd.grad(total, students, allow_unused=True, materialize_grads=True)
            for total in (expected.total, torch.stack(combined).sum())
        ]
        for one, other in zip(*gradients, strict=True):
            require(
                torch.allclose(one, other, rtol=1e-7, atol=1e-9),
                "the gradients of the parts do not add up to that of the whole batch, though the values do",
            )


def _half_labelled(batch: Batch) -> Batch:
    """The batch in float64; where targets are classes, two thirds of the first half lose theirs."""
    targets = batch.targets
    if isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point():
        targets = targets.clone()
        targets[: len(targets) // 3] = IGNORE
    inputs = batch.inputs
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        inputs = inputs.double()
    return batch._replace(inputs=inputs, targets=targets)


class _Failure(Exception):
    """The error that stops a run in the middle."""


class _StopAt:
    """An observer that fails at one step; fit then writes a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def kdx_step_end(self, step: int) -> None:
        if step == self.step:
            raise _Failure


def check_exact_resume(scheme: Scheme, tags: SchemeTags) -> None:
    """A run stopped in the middle of an epoch and resumed ends in the bits of an unbroken one."""
    batches = _batches(tags)
    with tempfile.TemporaryDirectory() as folder:

        def run(name: str, **options: Any) -> Scheme:
            trained = copy.deepcopy(scheme)
            where = Path(folder, name)
            options |= {"folder": where, "progress": False}
            fit(trained, batches, epochs=2, optimizer=tags.optimizer, seed=0, device="cpu", **options)
            return trained

        unbroken = run("unbroken")
        stop = len(batches) + max(len(batches) // 2, 1) if len(batches) > 1 else 1
        try:
            run("broken", observers=[_StopAt(stop)])
        except PluginError as error:
            if not isinstance(error.__cause__, _Failure):
                raise
        resumed = run("broken", resume=True)
    expected, found = _state(unbroken), _state(resumed)
    require(found.keys() == expected.keys(), "the resumed run ends with other parts than the unbroken one")
    if differ := [key for key in expected if not torch.equal(found[key], expected[key])]:
        fail(
            f"{differ[:5]} end otherwise than in an unbroken run; what changes during training belongs in parameters "
            "or buffers"
        )


def check_training_lowers_the_loss(scheme: Scheme, tags: SchemeTags) -> None:
    """20 steps on a few batches lower the loss on them."""
    trained, batches = _prepared(scheme, tags)
    before = _mean_total(trained, batches)
    epochs = -(-STEPS // len(batches))
    options: dict[str, Any] = {"optimizer": tags.optimizer, "schedule": None, "seed": 0, "device": "cpu"}
    fit(trained, batches, epochs=epochs, steps=STEPS, progress=False, **options)
    after = _mean_total(trained, batches)
    require(after < before, f"the loss was {before:.6g} before and is {after:.6g} after {STEPS} steps")


def _batches(tags: SchemeTags) -> list[Any]:
    return list(toy_batches() if tags.data is None else tags.data)


def _prepared(scheme: Scheme, tags: SchemeTags) -> tuple[Scheme, list[Any]]:
    """A copy in training mode whose parts exist, and batches."""
    copied, batches = copy.deepcopy(scheme).train(), _batches(tags)
    copied.dataset_size(sum(Batch.of(batch).rows for batch in batches))
    if not copied.ready:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            copied.setup(batches[0])
    copied.epoch_start(0, 1)
    copied.advance(0, STEPS)
    return copied, batches


def _losses(scheme: Scheme, batch: Any) -> Losses:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Losses.joined(list(_by_phase(scheme, batch)))


def _by_phase(scheme: Scheme, batch: Any) -> Iterator[Losses]:
    """The losses of every phase; a graph has to be used before the next phase runs."""
    phases = scheme.phases
    for phase in phases:
        with scheme.only(phase):
            yield scheme(batch, phase.name) if len(phases) > 1 else scheme(batch)


def _backward(scheme: Scheme, batch: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for losses in _by_phase(scheme, batch):
            losses.total.backward()  # type: ignore[no-untyped-call]


def _mean_total(scheme: Scheme, batches: list[Any]) -> float:
    probe = copy.deepcopy(scheme).train()
    return sum(_losses(probe, batch).total.item() for batch in batches) / len(batches)


def _teachers(scheme: Scheme) -> list[nn.Module]:
    """The modules that teach: those of kdx Teachers, and what is called ``teacher`` or ``teachers``."""
    found: list[nn.Module] = []
    for part in scheme.modules():
        if isinstance(part, Teacher):
            model = getattr(part, "model", None)
            found.append(model if isinstance(model, nn.Module) else part)
    for name in ("teacher", "teachers"):
        value = getattr(scheme, name, None)
        value = list(value.values()) if isinstance(value, dict | nn.ModuleDict) else value
        several = value if isinstance(value, list | tuple | nn.ModuleList) else [value]
        found += [item for item in several if isinstance(item, nn.Module) and not isinstance(item, Teacher)]
    return found


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}
