"""The base of all ways of deriving a student from a teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import nn

from kdx.students.edit import Edit, Plan

__all__ = ["Derivation"]


class Derivation(ABC):
    """One way of deriving students from a teacher, from the smallest to the teacher itself.

    A subclass says which students it can make; :func:`kdx.students.derive` looks for the largest one within a budget,
    copies the teacher and lets the :class:`kdx.students.Edit` of the plan change the copy. Its ``__init__`` takes
    options that a recipe can write: ``how: {name: width, importance: l2}``.

    Example:
        >>> import torch
        >>> import kdx
        >>> way = kdx.make("student", "width", importance="l2")
        >>> plan = way.plan(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(2, 3))
        >>> plan.settings, plan.edit(1).ratio
        (4, 0.5)
    """

    edit: ClassVar[type[Edit]]
    """The class of its edits; their ``how`` is the name under which the derivation is registered."""
    needs_budget: ClassVar[bool] = True
    """Whether a budget has to be given; without one the smallest student is made."""
    needs_data: bool = False
    """Whether :meth:`plan` looks at training rows; it is then called with a :class:`kdx.students.StudentData` as its
    third argument, ``plan(model, inputs, data)``. What the rows decided has to stand in the edits, as numbers and
    names, since a student is built again without data.
    """

    @abstractmethod
    def plan(self, model: nn.Module, inputs: Any) -> Plan:
        """The students that can be made of a model.

        Args:
            model: the teacher; it is left as it is.
            inputs: an example of what it takes, two samples or more.

        Returns:
            A plan: its costs must not fall from one setting to the next, and the last one is the teacher.
        """
