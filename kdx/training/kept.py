"""The checkpoint that is left of a run that could not write a file."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

from kdx.errors import FileError
from kdx.training.checkpoint import latest_checkpoint

__all__ = ["saying_what_is_kept"]

P = ParamSpec("P")
R = TypeVar("R")


def saying_what_is_kept(run: Callable[P, R]) -> Callable[P, R]:
    """Lets an error of a file, out of a function with an argument ``folder=``, say which checkpoint is still there."""

    @functools.wraps(run)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return run(*args, **kwargs)
        except FileError as error:
            folder = cast("str | Path | None", kwargs.get("folder"))
            if folder is None or not Path(folder).is_dir():
                raise
            last = latest_checkpoint(Path(folder, "checkpoints"))
            kept = f"{last} is kept, resume=True goes on from there" if last else "no checkpoint had been written yet"
            error.args = (f"{error}; {kept}",)
            raise

    return told
