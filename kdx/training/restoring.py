"""Takes off what a run puts on a scheme and its models, however it ends."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from torch import nn

from kdx.capture import hooks_removed
from kdx.modes import mode_of, put_into

__all__ = ["restored", "restoring"]

P = ParamSpec("P")
R = TypeVar("R")

_LEFT = ("forward", "_original_forward", "_is_accelerate_prepared", "_is_torch_compile")
"""Attributes that Accelerate and torch.compile give to the module that they are handed."""


@contextmanager
def restored(scheme: nn.Module) -> Iterator[None]:
    """Takes off at its end what a run leaves on a scheme and its models: hooks, attributes, modes.

    Every module that was there before is put back into its own mode, training or evaluation.
    """
    modes = [(module, mode_of(module)) for module in scheme.modules()]
    own = set(vars(scheme))
    try:
        with hooks_removed():
            yield
    finally:
        for name in _LEFT:
            if name not in own:
                vars(scheme).pop(name, None)
        for module, mode in modes:
            put_into(module, training=mode)


def restoring(run: Callable[P, R]) -> Callable[P, R]:
    """Makes a function that trains a scheme, its first argument, leave nothing on it: see :func:`restored`."""

    @functools.wraps(run)
    def leaves_nothing(*args: P.args, **kwargs: P.kwargs) -> R:
        scheme: Any = args[0] if args else kwargs["scheme"]
        with restored(scheme):
            return run(*args, **kwargs)

    return leaves_nothing
