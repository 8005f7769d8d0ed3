"""Several processes of one run: the first of them is the one that writes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from kdx.lock import sole_writer

__all__ = ["agreed", "is_first", "processes", "writing_alone"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def processes(*, cpu: bool) -> int:
    """How many processes train together; 1 for one that runs alone.

    Args:
        cpu: whether the run is kept off the GPU, as ``device="cpu"`` of :func:`kdx.fit` says.
    """
    return int(_connected(cpu).num_processes)


def is_first(*, cpu: bool) -> bool:
    """True for the first of the processes that train together, and for one that runs alone."""
    return bool(_connected(cpu).is_main_process)


def agreed(value: T, *, cpu: bool) -> T:
    """Gives the value that the first process has found to every process of a run; the others wait for it."""
    if processes(cpu=cpu) == 1:
        return value
    values: list[T] = broadcast_object_list([value], from_process=0)
    return values[0]


def writing_alone(run: Callable[P, R]) -> Callable[P, R]:
    """Lets a function with arguments ``folder=`` and ``device=`` run if no other run writes into the folder.

    Of several processes of one run the first takes the lock for all: see :func:`kdx.lock.sole_writer`.
    """

    @functools.wraps(run)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        folder = cast("str | Path | None", kwargs.get("folder"))
        writes = folder is not None and is_first(cpu=kwargs.get("device") == "cpu")
        with sole_writer(Path(cast("str", folder))) if writes else nullcontext():
            return run(*args, **kwargs)

    return alone


def _connected(cpu: bool) -> PartialState:
    if PartialState._shared_state.get("_cpu", cpu) != cpu:
        # Accelerate keeps one state per process; that of a run on another device does not count here
        AcceleratorState._reset_state(reset_partial_state=True)
    return PartialState(cpu=cpu)
