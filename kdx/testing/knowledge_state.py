"""Checks of a knowledge component's state: its parts, copies of it, and what a checkpoint holds."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kdx.knowledge.base import Knowledge
from kdx.testing.check import fail, require
from kdx.testing.samples import Sample, draw, loss_and_gradients, prepared, same, value_of
from kdx.testing.tags import KnowledgeTags


def check_copies(component: Knowledge, tags: KnowledgeTags) -> None:
    """A deep copy gives the same loss, prints as the original does and shares no state with it."""
    sample = draw(component, tags)
    original = prepared(component, sample)
    before = loss_and_gradients(copy.deepcopy(original), sample)
    twin = copy.deepcopy(original)
    require(repr(twin) == repr(original), f"it prints as {repr(original)!r}, a copy of it as {repr(twin)!r}")
    require(same(loss_and_gradients(twin, sample), before), "a copy gives another loss or gradient")
    with torch.no_grad():
        for tensor in (*twin.parameters(), *(b for b in twin.buffers() if b.is_floating_point())):
            tensor.add_(1.0)
    _step(twin, sample)
    require(same(loss_and_gradients(original, sample), before), "training a copy changed the original")


def check_pickles(component: Knowledge, tags: KnowledgeTags) -> None:
    """Pickled and loaded again it gives the same loss."""
    sample = draw(component, tags)
    original = prepared(component, sample)
    try:
        twin = pickle.loads(pickle.dumps(original))
    except Exception as error:
        fail(f"pickling it raised {type(error).__name__}: {error}; functions it keeps must have a name in a module")
    expected = loss_and_gradients(original, sample)
    require(same(loss_and_gradients(twin, sample), expected), "a pickled copy gives another loss or gradient")


def check_learnable_parts(component: Knowledge, tags: KnowledgeTags) -> None:
    """After ``setup`` every part exists, registered: parameters, buffers and modules, none in a plain attribute."""
    sample = draw(component, tags)
    ready = prepared(component, sample)
    require(ready.ready, "after setup it still says that it is not ready")
    before = {name: id(value) for name, value in ready.named_parameters()}
    ready.setup(sample.student.detach(), sample.teacher.detach())
    after = {name: id(value) for name, value in ready.named_parameters()}
    require(
        after == before, f"a second setup replaced or added parameters: {sorted(after)} instead of {sorted(before)}"
    )
    loss_and_gradients(ready, sample)
    after = {name: id(value) for name, value in ready.named_parameters()}
    require(
        after == before,
        f"forward made or replaced parameters {sorted(set(after.items()) - set(before.items()))}; an optimizer built "
        "before never trains them: build them in setup",
    )
    for path, module in ready.named_modules():
        for place, what in _hidden(module):
            fail(
                f"{'.'.join(filter(None, (path, place)))} is {what} outside of parameters, buffers and modules: it is "
                "neither trained nor saved nor moved; use nn.Parameter, register_buffer, nn.ModuleList or nn.ModuleDict"
            )


def check_state_dict(component: Knowledge, tags: KnowledgeTags) -> None:
    """A state_dict taken after a step, loaded into a new instance, continues with the same losses."""
    sample = draw(component, tags)
    trained = prepared(component, sample)
    _step(trained, sample)
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    fresh = prepared(component, sample, seed=1)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for mode in (True, False, True):
        expected = loss_and_gradients(trained.train(mode), sample)
        found = loss_and_gradients(fresh.train(mode), sample)
        require(
            same(found, expected),
            f"with training={mode} the loss is {expected[0].item()!r}, and {found[0].item()!r} after loading; state "
            "that changes belongs in parameters or buffers",
        )


def _step(component: Knowledge, sample: Sample) -> None:
    """One step of SGD on the component's own parameters, in training mode."""
    component.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        loss: Tensor = value_of(component(sample.student, sample.teacher, sample.batch))
    trained = [parameter for parameter in component.parameters() if parameter.requires_grad]
    if loss.requires_grad and trained:
        found = torch.autograd.grad(loss, trained, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(trained, found, strict=True):
                if gradient is not None:
                    parameter.sub_(0.1 * gradient)


def _hidden(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Tensors and modules in plain attributes, with their place."""
    registered = ("_parameters", "_buffers", "_modules")
    for name, value in vars(module).items():
        if name not in registered:
            yield from _inside(name, value, depth=3)


def _inside(place: str, value: Any, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, nn.Parameter):
        yield place, "a parameter"
    elif isinstance(value, Tensor):
        yield place, "a tensor"
    elif isinstance(value, nn.Module):
        yield place, f"a module ({type(value).__name__})"
    elif depth and isinstance(value, list | tuple | set):
        for number, item in enumerate(value):
            yield from _inside(f"{place}[{number}]", item, depth - 1)
    elif depth and isinstance(value, dict):
        for key, item in value.items():
            yield from _inside(f"{place}[{key!r}]", item, depth - 1)
