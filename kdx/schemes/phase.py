"""A phase of a step: what is trained on which losses, by which optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from kdx.batch import Batch
from kdx.losses import LossTerm
from kdx.ranges import check_whole

if TYPE_CHECKING:
    from kdx.training.optim import OptimizerSpec, ScheduleSpec

__all__ = ["Phase", "shown"]


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a step of a scheme that trains its parts in turn.

    Within a phase only its own parameters get a gradient and are moved, by an optimizer of its own.

    Args:
        name: unique in the scheme; checkpoints know its optimizer by it.
        terms: the weighted terms of a batch, as ``Scheme.terms`` gives them.
        parameters: what it trains; a parameter may belong to several phases.
        optimizer: see :data:`kdx.training.OptimizerSpec`; None takes optimizer and schedule of :func:`kdx.fit`.
        schedule: of its own optimizer, see :data:`kdx.training.ScheduleSpec`; it counts the steps of the run.
        steps: optimizer steps that it takes for each batch.

    Raises:
        ValueError: no steps, or a schedule without an optimizer of its own.
    """

    name: str
    terms: Callable[[Batch], Mapping[str, LossTerm]]
    parameters: tuple[nn.Parameter, ...]
    optimizer: OptimizerSpec | None = None
    schedule: ScheduleSpec = None
    steps: int = 1

    def __post_init__(self) -> None:
        check_whole(f"phase {self.name!r}: steps", self.steps, least=1)
        if self.schedule is not None and self.optimizer is None:
            raise ValueError(f"phase {self.name!r}: schedule needs an optimizer of the phase's own; give both, or none")


def shown(scheme: nn.Module, phase: Phase) -> str:
    """A scheme, or one of its several phases, as messages name it."""
    name = type(scheme).__name__
    return name if phase.name == "train" else f"phase {phase.name!r} of {name}"
