"""The hooks of kdx: what a plugin package may provide and what it may observe.

A plugin is a module (or object) named by an entry point of group ``kdx``. It imports no torch: components are given
as import strings in a :class:`kdx.Spec` and loaded when they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from kdx.artifact import Artifact, FinishedStudent
    from kdx.batch import Batch
    from kdx.losses import Losses
    from kdx.spec import Spec
    from kdx.training.run import Run

PROJECT = "kdx"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def kdx_knowledge() -> Iterable[Spec]:  # type: ignore[empty-body]  # pluggy reads the signature only
    """Knowledge components: subclasses of :class:`kdx.Knowledge`."""


@hookspec
def kdx_schemes() -> Iterable[Spec]:  # type: ignore[empty-body]
    """Schemes: subclasses of :class:`kdx.Scheme`."""


@hookspec
def kdx_assistants() -> Iterable[Spec]:  # type: ignore[empty-body]
    """Teacher assistants: subclasses of :class:`kdx.Assistant`."""


@hookspec
def kdx_models() -> Iterable[Spec]:  # type: ignore[empty-body]
    """Models: callables ``(num_classes=..., input_shape=..., **options)`` that return an ``nn.Module``."""


@hookspec
def kdx_datasets() -> Iterable[Spec]:  # type: ignore[empty-body]
    """Data sets: callables ``(split=..., **options)``, see :func:`kdx.datasets.check_dataset`."""


@hookspec
def kdx_tasks() -> Iterable[Spec]:  # type: ignore[empty-body]
    """Tasks: subclasses of :class:`kdx.Task`, what models are trained and judged for."""


@hookspec
def kdx_students() -> Iterable[Spec]:  # type: ignore[empty-body]
    """Ways of deriving a student from its teacher: subclasses of :class:`kdx.students.Derivation`."""


@hookspec
def kdx_ops() -> Iterable[Spec]:  # type: ignore[empty-body]
    """Kernels: ``Spec("softmax_kl/mine", "pkg.module")`` is a backend of an op, ``Spec("my_op", "pkg.module:my_op")`` a
    new op, whose backends are listed beside it. A backend's module defines ``unsupported(*tensors) -> str | None`` and
    the op's ``forward``, and is imported on first use; ``auto`` asks it before those of kdx.
    """


@hookspec
def kdx_commands() -> Iterable[Spec]:  # type: ignore[empty-body]
    """Commands: ``Spec("mine", "pkg.cli:app", "summary")`` is ``kdx mine``: a ``typer.Typer`` or a function."""


@hookspec
def kdx_recipes() -> Iterable[Path]:  # type: ignore[empty-body]
    """Recipes that come with the package: their files, ``mine.yaml`` is ``kdx run mine``."""


@hookspec(historic=True)
def kdx_configure(run: Run) -> None:
    """A run is about to take its first step; a plugin registered later is told of it too."""


@hookspec
def kdx_before_evaluate(run: Run, name: str, student: nn.Module, batches: Callable[[], Iterable[Batch]]) -> None:
    """A student is about to be evaluated after an epoch, or exported at the end of the run, its selected weights back.

    What a hook changes in its buffers, as recalibrated BatchNorm statistics, is evaluated, selected, exported and
    trained on; its modes and the random states are put back. ``batches()`` gives the training rows in order.
    """


@hookspec
def kdx_finalise(stage: FinishedStudent, student: nn.Module) -> Artifact | Iterable[Artifact] | None:
    """A stage has exported its student, alone or taught; what it is converted into for use, with its files.

    ``student`` is a copy, on the CPU and in evaluation mode. None: nothing of this one.
    """


@hookspec
def kdx_step_end(run: Run, step: int, losses: Losses) -> None:
    """An optimizer step is done; ``losses`` are detached and still on their device."""


@hookspec
def kdx_epoch_end(run: Run, row: Mapping[str, Any]) -> None:
    """An epoch is over, and evaluated if that was asked for; ``row`` is the new one of ``run.history``."""


@hookspec
def kdx_run_end(run: Run) -> None:
    """A run has ended, was stopped or failed; its checkpoint is written."""
