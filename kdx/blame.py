"""One message for an exception of somebody's component: what failed, whose it is, and its version."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points, packages_distributions, version
from inspect import getsourcefile, isclass, ismodule, isroutine
from typing import Any

from kdx.errors import ComponentError

__all__ = ["blaming", "explaining_lost_workers", "origin_of"]


@contextmanager
def blaming(what: str, thing: object) -> Iterator[None]:
    """Turns an exception within it into a :class:`kdx.errors.ComponentError` that names a component.

    Of components inside each other the innermost is named.

    Args:
        what: its part in the run, as ``"knowledge 'kd'"``.
        thing: the component, or a function.
    """
    try:
        yield
    except ComponentError:
        raise
    except Exception as error:
        if lost := _lost_worker(error):  # noticed in a signal handler, whatever was running
            _forget_workers(error)
            raise ComponentError.of(_lost(lost), lost) from error
        raise ComponentError.of(
            f"{what}{_shown(thing)} raised {type(error).__name__}: {_last(error)}", error
        ) from error


@contextmanager
def explaining_lost_workers() -> Iterator[None]:
    """Says of a data loader's worker process that was killed what that means, as torch raises it anywhere.

    Raises:
        ComponentError: a worker was killed; it is of the type that torch raised too, most often a RuntimeError.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        lost = None if isinstance(error, ComponentError) else _lost_worker(error)
        if lost is None:
            raise
        _forget_workers(error)
        raise ComponentError.of(_lost(lost), lost) from error


def _forget_workers(error: BaseException | None) -> None:
    """Lets go of the loader that the error holds on to: as long as it lives, torch raises the error again wherever a
    process of any kind ends.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _lost_worker(error: BaseException | None) -> Exception | None:
    """The error that says so, of an error or of what it came up in: torch.save, for one, ends with another."""
    while error is not None:
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):
            return error
        if isinstance(error, OSError | EOFError) and _asked_a_lost_worker(error):
            return error
        error = error.__context__
    return None


def _asked_a_lost_worker(error: Exception) -> bool:
    """Whether the memory of a batch was asked of the worker that made it, and nobody answered."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == "multiprocessing.resource_sharer" for frame, _ in frames)


def _lost(error: Exception) -> str:
    said = str(error).strip().rstrip(".") or type(error).__name__
    return (
        f"a worker process of a data loader was lost ({said}): most often the system had no "
        "memory left for it; take fewer workers (num_workers, data.workers in a recipe) or smaller samples. The last "
        "checkpoint of a run with a folder stays, resume goes on from there"
    )


def origin_of(thing: object) -> str | None:
    """The package that a component comes from, with its version, or the file; None for what is Python's own.

    Example:
        >>> import kdx
        >>> origin_of(kdx.SoftTargets()) == f"kdx {kdx.__version__}"
        True
    """
    code = _code(thing)
    module: str = getattr(code, "__name__", "") if ismodule(code) else getattr(code, "__module__", None) or "builtins"
    package = module.partition(".")[0]
    if package == "builtins":
        return None
    for entry in entry_points(group="kdx"):
        if entry.dist and entry.module.partition(".")[0] == package:
            return f"plugin {entry.dist.name} {entry.dist.version}"
    for distribution in packages_distributions().get(package, ()):
        return f"{distribution} {version(distribution)}"
    try:
        return getsourcefile(code) or module
    except (OSError, TypeError):
        return module


def _shown(thing: object) -> str:
    code, origin = _code(thing), origin_of(thing)
    name = getattr(code, "__qualname__", code.__name__)
    return f" ({name}{f' of {origin}' if origin else ''})"


def _code(thing: object) -> Any:
    """The class or function that a component is made of."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    owner = getattr(thing, "__self__", None)  # of a method
    if owner is not None and not isclass(owner) and isroutine(thing):
        thing = owner
    return thing if isclass(thing) or isroutine(thing) or ismodule(thing) else type(thing)


def _last(error: Exception) -> str:
    """The text of an error, one line of those that a loader's worker process or a device sent over."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.rstrip().rpartition("\n")[2].partition(": ")[2] or text
    if "device-side assert" in text:
        text = (
            f"{text.splitlines()[0]}; a kernel met a number out of range, most often a label or an index: with a "
            "loader that gives tensors on the CPU, or with device='cpu', the message names it"
        )
    return text
