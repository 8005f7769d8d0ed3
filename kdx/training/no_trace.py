"""A module that is as it was before, whatever it did within a block."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from kdx import rng
from kdx.modes import borrowed_buffers

__all__ = ["leaving_no_trace"]

_TORCHS = vars(nn.Module()).keys()


@contextmanager
def leaving_no_trace(model: nn.Module) -> Iterator[None]:
    """Within it a model may run as often as wanted: its state and the random states are as before afterwards.

    Buffers (memory banks, statistics) have copies that stand in for them. The attributes of every module are put back,
    with what their lists, dicts and sets held, and so are the generators that it holds.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with leaving_no_trace(norm):
        ...     _ = norm(torch.rand(4, 2))
        >>> norm.running_mean.tolist()
        [0.0, 0.0]
    """
    with ExitStack() as after:
        after.enter_context(rng.isolated())
        for part in model.modules():
            own = {name: value for name, value in vars(part).items() if name not in _TORCHS}
            after.callback(_put_back, part, own)
            for value in own.values():
                if isinstance(value, torch.Generator):
                    after.callback(value.set_state, value.get_state())
                elif isinstance(value, list | dict | set | deque):
                    after.callback(_refill, value, value.copy())
        after.enter_context(borrowed_buffers(model))
        yield


def _put_back(part: nn.Module, own: dict[str, Any]) -> None:
    for name in [name for name in vars(part) if name not in _TORCHS and name not in own]:
        del vars(part)[name]
    vars(part).update(own)


def _refill(container: Any, content: Any) -> None:
    container.clear()
    container.update(content) if isinstance(container, dict | set) else container.extend(content)
