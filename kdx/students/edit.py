"""The base of all changes of a structure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict
from torch import nn

if TYPE_CHECKING:
    from kdx.artifact import Artifact, FinishedStudent

__all__ = ["Edit", "Kept", "Origin", "Plan"]


@dataclass(frozen=True, slots=True)
class Kept:
    """A part of a model that stays as it is, and why.

    Args:
        module: name of the module, and its class.
        reason: what about it forbids a change.
    """

    module: str
    reason: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a weight of a student comes from.

    Args:
        how: ``copied`` whole, ``sliced`` or ``factorised`` from the teacher's weights, ``masked`` with entries of 0, or
            ``measured`` on weights or data.
        shape: in the student.
        teacher_shape: of what it was made from.
        error: of a factorisation or a mask, the Frobenius norm of what is lost over that of the teacher's weight.
    """

    how: Literal["copied", "sliced", "factorised", "masked", "measured"]
    shape: tuple[int, ...]
    teacher_shape: tuple[int, ...]
    error: float | None = None


class Edit(BaseModel, ABC):
    """One change of a model's structure, written down so that it can be made again without the teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    how: str
    """Name of the derivation; a subclass gives it as a ``Literal`` with its default."""

    @abstractmethod
    def build(self, model: nn.Module) -> None:
        """Changes a model in place; weights of new shapes are drawn anew.

        Raises:
            StudentError: the model is not built as the edit expects.
        """

    @abstractmethod
    def derive(self, model: nn.Module, inputs: Any) -> dict[str, Origin]:
        """Changes a model in place and makes the new weights from its own.

        Args:
            model: a copy of the teacher.
            inputs: an example of what it takes, at least two samples.

        Returns:
            Name -> origin, of the weights that were not copied whole.
        """

    def finalise(self, model: nn.Module, stage: FinishedStudent) -> Artifact | Iterable[Artifact] | None:
        """Converts a trained student for use and writes its files; None, the default: it is used as it is.

        A stage of a recipe asks when it has exported its student, so that ``student.model.how`` alone brings them.

        Args:
            model: a copy of the trained student, on the CPU and in evaluation mode.
            stage: that trained it; files are written into its ``folder``.
        """
        return None


@dataclass(frozen=True)
class Plan:
    """The students that one way of deriving can make, from the smallest to the teacher itself.

    Args:
        settings: how many there are.
        edit: the one at a place, ``0 .. settings - 1``.
        kept: what had to stay as it is, and why.
    """

    settings: int
    edit: Callable[[int], Edit]
    kept: list[Kept]
