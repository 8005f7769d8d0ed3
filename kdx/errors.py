"""The errors and warnings that kdx defines."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BackendError",
    "CaptureError",
    "CheckpointError",
    "ComponentError",
    "CountError",
    "DamageWarning",
    "DamagedError",
    "ExportError",
    "FileError",
    "InUseError",
    "Interrupted",
    "KdxDeprecationWarning",
    "KdxError",
    "PlanError",
    "PluginError",
    "PluginWarning",
    "RecipeError",
    "RunExistsError",
    "StopRun",
    "StoreError",
    "StoreWarning",
    "StudentError",
    "TrustError",
    "UnknownNameError",
    "nearest",
]


class KdxError(Exception):
    """Base of all errors that kdx defines."""


class KdxDeprecationWarning(FutureWarning):
    """Something public of kdx works for now and will be removed; the message says when, and what to use."""


class BackendError(KdxError, RuntimeError):
    """A kernel backend that was asked for by name cannot run here; the message says why."""


class CaptureError(KdxError, ValueError):
    """A tap names no module, never ran, or was added too late."""


class CheckpointError(KdxError, RuntimeError):
    """A checkpoint or weights are of another format, or belong to something else."""


class ComponentError(KdxError):
    """Something that a run is made of failed: knowledge, a task, a metric, a model, a data set.

    The message names it, its package and version. ``__cause__`` is the exception itself, and the error is of its type
    too: ``except ValueError`` goes on catching a ValueError of a component.
    """

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)  # the cause's own __init__ may take anything

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return ComponentError, (str(self),)

    @classmethod
    def of(cls, message: str, cause: Exception) -> ComponentError:
        """An error with this message, of the type of its cause too."""
        kind = type(cause)
        if isinstance(cause, StopIteration):  # which would end a loop instead of the run
            return cls(message)
        try:
            made = type(cls.__name__, (cls, kind), {"__module__": cls.__module__, "__doc__": cls.__doc__})
            error: ComponentError = made(message)
        except TypeError:  # a type that cannot be built on
            error = cls(message)
        return error


class DamagedError(KdxError, RuntimeError):
    """A file is not as kdx wrote it: a bit changed, it was cut short or edited by hand; the message says what to do."""


class DamageWarning(UserWarning):
    """A file is damaged and an older one takes its place, which changes no result."""


class FileError(KdxError, OSError):
    """A file cannot be read or written: the disk is full, it may not be opened, or its folder is gone.

    The message names the file and says what is kept; ``errno`` is that of the system, if it gave one.
    """


class InUseError(KdxError, RuntimeError):
    """Another process writes into the folder; the message names it, its host and since when."""


class ExportError(KdxError, RuntimeError):
    """A model cannot be written in the form asked for, or the file gives other outputs than the model."""


class PlanError(KdxError, ValueError):
    """The stages of an experiment do not make a plan, or a stage cannot have the model it asks for."""


class PluginError(KdxError, RuntimeError):
    """A plugin package is broken, clashes with another one, or its component does not import."""


class PluginWarning(UserWarning):
    """A plugin package was left out; the rest of kdx works."""


class RecipeError(KdxError, ValueError):
    """A recipe has an unknown key, a wrong value or an unknown component."""


class RunExistsError(KdxError, FileExistsError):
    """A run folder already holds a run."""


class StopRun(KdxError):
    """An observer ends the run by raising it: ``raise kdx.StopRun("why")``; ``__cause__`` may be its own exception.

    It is no failure of the observer. A checkpoint is written, :func:`kdx.fit` raises the same exception, and an
    experiment marks the stage as stopped and reads no test row for it. A run that is to end early with its student
    evaluated and exported is ended by ``run.stop("why")`` instead.

    Args:
        reason: why, for whoever reads the report.

    Attributes:
        reason: as given.
        step: optimizer steps that the run had done; None before it is known.
        epoch: epochs that it had done.
        stage: of an experiment in which it was raised, else None.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.step: int | None = None
        self.epoch: int | None = None
        self.stage: str | None = None

    def __str__(self) -> str:
        if self.stage is None:
            return self.reason
        return (
            f"stage {self.stage!r} was stopped after step {self.step}: {self.reason}. It stays so; to go on from its "
            f"checkpoint, remove {self.stage}/stopped.json from the folder of the run, and resume"
        )


class StoreError(KdxError, RuntimeError):
    """A teacher store is incomplete or damaged, or comes from another teacher or other data."""


class StoreWarning(UserWarning):
    """A teacher store is read in a way that biases what the student learns from it."""


class StudentError(KdxError, ValueError):
    """A student cannot be derived from its teacher as asked, or does not keep its contract."""


class CountError(KdxError, ValueError):
    """Something about a model cannot be counted: its weights or its operations are where kdx cannot look."""


class TrustError(KdxError, ValueError):
    """A text names code that it may not run, or would read the environment; the message says how to allow it."""


class TeacherChangedError(KdxError, RuntimeError):
    """A teacher that was to stay as it is changed during training."""


class UnknownNameError(KdxError, LookupError):
    """No component has this name; the message lists the nearest and the known ones."""


class Interrupted(KdxError):
    """A run was stopped by a signal after writing its checkpoint.

    Args:
        message: what happened and how to go on.
        signum: the number of the signal.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that names what ``name`` may have meant: the near names, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    if not names:
        return "there are none"
    shown = ", ".join(names[:30])
    return f"known are: {shown}" + (f" and {len(names) - 30} more" if len(names) > 30 else "")
