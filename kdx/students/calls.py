"""The calls of a model's modules in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdx.capture import call, clean_name
from kdx.modes import evaluating

__all__ = ["Calls", "plainly", "record_calls", "tensors_in"]


@dataclass(slots=True)
class Calls:
    """One module's part in a forward pass.

    Args:
        count: how often it ran.
        order: its place among the modules by when they begin, from 0.
        takes: shape of the first tensor it got, None if there is none.
        gives: shape of the tensor it gave, or of the first one of a tuple.
    """

    count: int
    order: int
    takes: tuple[int, ...] | None
    gives: tuple[int, ...] | None


@contextmanager
def plainly(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradient, and transformer layers run as their modules, not as PyTorch's fused kernel."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def record_calls(model: nn.Module, inputs: Any) -> dict[str, Calls]:
    """Runs a model once in evaluation mode; name -> what the module did, for those that ran, in their order."""
    found: dict[str, Calls] = {}

    def begin(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entry = found.setdefault(name, Calls(0, len(found), _shape((args, kwargs)), None))
            entry.count += 1

        return hook

    def end(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, result: Any) -> None:
            found[name].gives = _shape(result)

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(begin(clean_name(name)), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(end(clean_name(name))).remove)
        stack.enter_context(plainly(model))
        call(model, inputs)
    return found


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


def _shape(value: Any) -> tuple[int, ...] | None:
    return next((tuple(tensor.shape) for tensor in tensors_in(value)), None)
