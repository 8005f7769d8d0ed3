"""Models in evaluation mode, and models whose buffers stay as they are, within a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import fx, nn

from kdx.baked_modes import baked_training, switch

__all__ = [
    "borrowed_buffers",
    "check_can_evaluate",
    "evaluating",
    "hold",
    "keeping_modes",
    "mode_of",
    "put_into",
    "switches",
    "train",
    "unchanged_buffers",
]


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Puts models into evaluation mode, and every submodule back into its own mode afterwards.

    Raises:
        ValueError: see :func:`hold`.
    """
    with keeping_modes(*models):
        for model in models:
            for graph in filter(switches, model.modules()):
                put_into(graph, training=False)  # its attribute may say something else than its operations
            hold(model)
            check_can_evaluate(model)
        yield


@contextmanager
def keeping_modes(*models: nn.Module) -> Iterator[None]:
    """Puts every module of some models back into its own mode afterwards, training or evaluation."""
    modes = [(module, mode_of(module)) for model in models for module in model.modules() if _has_mode(module)]
    try:
        yield
    finally:
        for module, mode in modes:
            put_into(module, training=mode)


def switches(module: nn.Module) -> bool:
    """Whether a module is an exported graph that its user lets be trained: ``train()`` no longer refuses every call.

    ``torchao.quantization.pt2e.allow_exported_model_train_eval`` does that. Its own ``train()`` forgets rates of
    dropout and momenta of BatchNorm that are not the defaults, so that kdx does not call it, and turns the switches of
    the operations itself (:func:`kdx.baked_modes.switch`). Only ``num_batches_tracked`` of a graph that was exported
    while training counts evaluations too.
    """
    if not isinstance(module, fx.GraphModule) or "train" not in vars(module):
        return False
    code = getattr(vars(module)["train"], "__code__", None)
    return code is None or "NotImplementedError" not in code.co_names


def mode_of(module: nn.Module) -> bool:
    """Whether one module is in training mode; of a graph that switches its operations say, not its attribute."""
    return bool(baked_training(module)) if switches(module) else bool(module.training)


def put_into(module: nn.Module, *, training: bool) -> None:
    """Puts one module into a mode, and not those in it."""
    if switches(module):
        switch(module, training=training)  # type: ignore[arg-type]  # a graph
    module.training = training


def train(model: nn.Module, *, training: bool = True) -> None:
    """Calls ``train()`` of a model, and switches the graphs in it that switch.

    Raises:
        NotImplementedError: another exported graph is in it, which has no modes.
    """
    graphs = [(module, vars(module)["train"]) for module in model.modules() if switches(module)]
    for graph, _ in graphs:
        vars(graph)["train"] = _unasked
    try:
        model.train(training)
    finally:
        for graph, own in graphs:
            vars(graph)["train"] = own
            put_into(graph, training=training)


def _unasked(mode: bool = True) -> None:
    """Takes the place of the ``train()`` of a graph that kdx switches itself."""


def hold(model: nn.Module, *, training: bool = False) -> None:
    """Puts a model and all of its submodules into one mode, if any of them is in the other.

    A ``train`` method of the model's own is called; what it leaves in the other mode is set. Exported graphs without a
    ``train()`` of their own (see :func:`switches`) and modules without a mode stay as they are.
    """
    if not _any_in_mode(model, not training):
        return
    with suppress(NotImplementedError):  # an exported graph, here or inside
        train(model, training=training)
    for module in model.modules():
        if _has_mode(module) and module.training != training:
            put_into(module, training=training)


def check_can_evaluate(model: nn.Module, what: str = "the model") -> None:
    """Checks that evaluation mode can be had: a graph that was exported or traced while training bakes training in.

    Args:
        model: any model.
        what: how a message names it.

    Raises:
        ValueError: it runs operations in training mode whatever its mode is.
    """
    if baked := baked_training(model):
        raise ValueError(
            f"{what} ({type(model).__name__}) was exported or traced in training mode and does {' and '.join(baked)} "
            "as in training whatever its mode; export or trace it again after model.eval(), or let "
            "torchao.quantization.pt2e.allow_exported_model_train_eval switch an exported graph"
        )


def _any_in_mode(model: nn.Module, training: bool) -> bool:
    """Whether some module in a model is in a mode; a third of what a look through ``model.modules()`` costs."""
    seen, waiting = {model}, [model]
    while waiting:
        module = waiting.pop()
        if getattr(module, "training", not training) == training:
            return True
        for child in module._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                waiting.append(child)
    return False


def _has_mode(module: nn.Module) -> bool:
    return hasattr(module, "training")  # a module that torch.jit.freeze made has none


@contextmanager
def borrowed_buffers(model: nn.Module) -> Iterator[None]:
    """Lets a model compute with copies of its buffers, so that its own stay as they are and a graph may outlive it."""
    own = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    copies: dict[int, torch.Tensor] = {}
    for module, name, buffer in own:
        if buffer is not None:
            module._buffers[name] = copies.setdefault(id(buffer), buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in own:
            module._buffers[name] = buffer


@contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Restores the buffers of a model afterwards: a forward pass in training mode moves those of BatchNorm."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    yield
    with torch.no_grad():
        for name, buffer in before.items():
            model.get_buffer(name).copy_(buffer)
