"""A model with adapters, as peft makes one, run without them: the teacher of the student that they make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kdx.capture import Captured, clean_name, unwrap
from kdx.linear_logits import LinearLogits
from kdx.modes import evaluating

__all__ = ["Base", "check_has_adapter", "check_not_trained", "without_adapter"]


class Base(nn.Module):
    """The parameters and buffers of a model that no adapter trains, under their names in it.

    Args:
        model: with its adapters.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                self._parameters[name] = parameter  # names with dots, which register_parameter refuses
        self._buffers.update(model.named_buffers())


def check_has_adapter(model: nn.Module) -> None:
    """Checks that the adapters of a model can be turned off.

    Raises:
        TypeError: it has no method ``disable_adapter``.
    """
    if not callable(getattr(unwrap(model), "disable_adapter", None)):
        raise TypeError(
            f"adapter='off': {type(unwrap(model)).__name__} has no disable_adapter(), a context in which its adapters "
            "are off, as models of peft have; give the student that peft.get_peft_model made, or a model without "
            "adapters and no adapter="
        )


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Runs a model without its adapters and in evaluation mode; every mode and flag is then what it was before.

    What peft does to ``requires_grad`` when it turns adapters off and on again is undone too.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with evaluating(model), unwrap(model).disable_adapter():  # type: ignore[operator]  # checked, see above
            yield
    finally:
        for parameter, flag in flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)


def _tensors(captured: Captured) -> list[Tensor]:
    """All that a pass gave: what is held as hidden states and a head by its parts."""
    found = [*captured.values()]
    for held in captured.held.values():
        if isinstance(held, LinearLogits):
            found += [held.hidden, held.weight, *([] if held.bias is None else [held.bias])]
        elif isinstance(held, Tensor):
            found.append(held)
    return found


def check_not_trained(model: nn.Module, run: Callable[[], Captured]) -> None:
    """Checks, by one pass without adapters, that no parameter that is trained takes part in it.

    Args:
        model: with its adapters.
        run: a pass of the model, called with its adapters off; gives what was captured.

    Raises:
        ValueError: one does; it is named.
    """
    trained = {clean_name(name): each for name, each in model.named_parameters() if each.requires_grad}
    with torch.enable_grad(), without_adapter(model):
        for parameter in model.parameters():
            parameter.requires_grad_(any(parameter is each for each in trained.values()))
        outputs = [each for each in _tensors(run()) if each.requires_grad]
        if not outputs:
            return
        found = torch.autograd.grad([each.sum() for each in outputs], [*trained.values()], allow_unused=True)
    if moving := [name for name, gradient in zip(trained, found, strict=True) if gradient is not None]:
        more = f" and {len(moving) - 1} more" if len(moving) > 1 else ""
        raise ValueError(
            f"adapter='off': the teacher is the student without its adapters, and {moving[0]!r}{more} of it is "
            "trained, so that it would follow the student; freeze all but the adapters (requires_grad_(False), as peft "
            "does), or give copy.deepcopy of the base as the teacher"
        )
