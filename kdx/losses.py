"""Terms of a loss, each with what it is a mean over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Count", "Counted", "LossTerm", "Losses", "Mean", "Over", "OverHead", "OverOwn", "mean_of", "tasks_of"]

Count = Tensor | float
"""How much a mean is taken over: a number or a 0-dim tensor, not negative, not necessarily whole."""


class Over(Enum):
    """The things that a mean counts, where the batch alone tells how many there are, before any model has run.

    :func:`kdx.fit` then knows the whole of a step in advance, and needs the graph of one micro-batch at a time.
    """

    ROWS = "rows"
    """The samples of the batch."""
    LABELLED = "labelled"
    """The integer targets that are not ``-100``: samples, pixels or tokens; of other targets the samples."""
    ELEMENTS = "elements"
    """The integer targets, with a label or without: samples, pixels or tokens; of other targets the samples."""
    TASK = "task"
    """The targets that the scheme's task counts: labelled samples, pixels or tokens, or their class weights."""


@dataclass(frozen=True, slots=True)
class OverHead:
    """The things that a mean counts among the targets of one head, see :class:`kdx.tasks.Heads`.

    Args:
        over: what is counted.
        head: name of the head.
    """

    over: Over
    head: str

    @property
    def value(self) -> str:
        """The thing in words."""
        return f"{self.over.value} of head {self.head!r}"


@dataclass(frozen=True, slots=True)
class OverOwn:
    """The things of its own that a knowledge component counts in a batch, see :meth:`kdx.Knowledge.count`.

    Args:
        component: the path of the component among those of its scheme, as ``"alm"``.
    """

    component: str

    @property
    def value(self) -> str:
        """The thing in words."""
        return f"what {self.component!r} counts"


Counted = Over | OverHead | OverOwn
"""The things that a mean counts, where the batch alone tells how many there are."""


class Mean(NamedTuple):
    """A term of a loss that says what it is a mean over, so that parts of a batch can be put together exactly.

    The mean over a whole is ``sum(count_i * value_i) / sum(count_i)`` of its parts: micro-batches and ranks.

    Args:
        value: the mean, a scalar.
        count: what it was taken over, as the number of labelled pixels; 0 where nothing counted. The value is then not
            looked at, but its gradient must be finite: divide by ``count.clamp(min=1)``, or use :meth:`of_sum`.
        over: says that :class:`Over` tells the count of any batch; None for a count that only the models' outputs tell.
            Then :func:`kdx.fit` keeps the graphs of all micro-batches of a step until their counts are known.

    Example:
        >>> per_token = torch.tensor([0.5, 1.5, 4.0])
        >>> term = Mean.of_sum(per_token[:2].sum(), 2)
        >>> term.value.item(), term.count
        (1.0, 2)
    """

    value: Tensor
    count: Count  # type: ignore[assignment]  # hides tuple.count, which nothing here needs
    over: Counted | None = None

    @classmethod
    def of_sum(cls, total: Tensor, count: Count, over: Counted | None = None) -> Mean:
        """The mean ``total / count``, 0 with zero gradient where ``count`` is 0."""
        if isinstance(count, Tensor):
            return cls(total / torch.where(count > 0, count, 1), count, over)
        return cls(total / (count or 1), count, over)

    def scaled(self, weight: Tensor | float) -> Mean:
        """The same mean of values that are ``weight`` times as large."""
        return Mean(weight * self.value, self.count, self.over)

    def plus(self, other: Mean) -> Mean:
        """The sum of two means over the same things."""
        return Mean(self.value + other.value, self.count, self.over)


LossTerm = Tensor | Mean | tuple[Tensor, Count]
"""A term as schemes and components may give it: a scalar, a mean over the samples, or a mean with its count."""


class Losses(NamedTuple):
    """The losses of one batch.

    Args:
        total: scalar to call ``backward`` on; the sum of the terms.
        terms: name -> scalar, each already multiplied by its weight.
        counts: name -> what that term is a mean over. A term that is not named is a mean over the rows of the batch.
        over: name -> how its count follows from a batch alone; terms whose count only the models' outputs tell are
            missing.
        measured: other numbers that :func:`kdx.fit` measured in this step, as ``grad/kd/norm``, ``weight/kd`` and
            ``prequential/student``; observers log them.
    """

    total: Tensor
    terms: dict[str, Tensor]
    counts: dict[str, Count] = {}  # noqa: RUF012  # a named tuple's default, never changed
    over: dict[str, Counted] = {}  # noqa: RUF012
    measured: dict[str, float] = {}  # noqa: RUF012

    @classmethod
    def of(cls, terms: Mapping[str, LossTerm], *, rows: int | None = None) -> Losses:
        """Losses whose total is the sum of ``terms``.

        Args:
            terms: name -> a scalar, which is a mean over the samples of the batch, a :class:`Mean` or
                ``(value, count)``.
            rows: samples of the batch, the count of every plain scalar; None leaves it to :func:`kdx.fit`.

        Raises:
            ValueError: there are none.
            TypeError: one is not a scalar.

        Example:
            >>> losses = Losses.of({"task": torch.tensor(1.0), "tokens": (torch.tensor(2.0), 7)}, rows=4)
            >>> losses.total.item(), losses.counts
            (3.0, {'task': 4, 'tokens': 7})
        """
        if not terms:
            raise ValueError("a scheme needs at least one term: a task loss or one knowledge component")
        values: dict[str, Tensor] = {}
        counts: dict[str, Count] = {}
        over: dict[str, Counted] = {}
        for name, term in terms.items():
            mean = mean_of(f"term {name!r}", term)
            if mean is None:
                values[name] = scalar(f"term {name!r}", term)
                over[name] = Over.ROWS
                if rows is not None:
                    counts[name] = rows
                continue
            counts[name] = mean.count
            counted = mean.count > 0
            if isinstance(counted, Tensor) or not counted:  # torch's mean over nothing is NaN
                counted = torch.as_tensor(counted, device=mean.value.device)
                values[name] = torch.where(counted, mean.value, mean.value.new_zeros(()))
            else:
                values[name] = mean.value
            if mean.over is not None:
                over[name] = mean.over
        total, *rest = values.values()
        for term in rest:
            total = total + term
        return cls(total, values, counts, over)

    @classmethod
    def joined(cls, parts: Sequence[Losses]) -> Losses:
        """The losses of the phases of one step; terms of one name are added."""
        if len(parts) == 1:
            return parts[0]
        terms: dict[str, Tensor] = {}
        counts: dict[str, Count] = {}
        for part in parts:
            for name, term in part.terms.items():
                terms[name] = terms[name] + term if name in terms else term
            counts |= part.counts
        return cls(cls.of(terms).total, terms, counts)

    def detach(self) -> Losses:
        """The same numbers without their graph."""
        return self._replace(
            total=self.total.detach(), terms={name: term.detach() for name, term in self.terms.items()}
        )


def mean_of(what: str, term: object) -> Mean | None:
    """``term`` as a :class:`Mean` if it says what it is a mean over, as a Mean or ``(value, count)``; else None.

    Raises:
        TypeError: the value is no scalar, or the count neither a number nor a 0-dim tensor; the message begins with
            ``what``.
        ValueError: the count is negative or not finite (looked at where that costs no wait for a device).
    """
    if not isinstance(term, tuple):
        return None
    if len(term) not in (2, 3):
        raise TypeError(f"{what}: expected a scalar, kdx.Mean or (value, count), got a tuple of {len(term)}")
    value, count = scalar(what, term[0]), term[1]
    if not isinstance(count, Tensor | int | float) or (isinstance(count, Tensor) and count.dim() != 0):
        came = f"shape {list(count.shape)}" if isinstance(count, Tensor) else repr(count)
        raise TypeError(f"{what}: its count must be a number or a 0-dim tensor, got {came}")
    if not isinstance(count, Tensor) and not 0 <= count < float("inf"):
        raise ValueError(f"{what}: its count says what it is a mean over and must be 0 or more, got {count}")
    return term if isinstance(term, Mean) else Mean(value, count)


def scalar(what: str, value: object) -> Tensor:
    """``value``, if it is a loss that ``backward`` can be called on.

    Raises:
        TypeError: it is not; the message begins with ``what``.
    """
    if isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point():
        return value
    came = type(value).__name__
    if isinstance(value, Tensor):
        came = f"a tensor of {value.dtype} with shape {list(value.shape)}"
    raise TypeError(f"{what}: expected one number, a 0-dim tensor of floating point as .mean() gives it, got {came}")


def tasks_of(term: str, terms: Iterable[str]) -> list[str]:
    """The task losses that a term stands beside: of several students those of its own, ``<student>/task``.

    A model with heads has one for each, ``task/seg``.

    Example:
        >>> tasks_of("peer0/kd", ["peer0/task", "peer0/kd", "peer1/task"]), tasks_of("kd", ["task/a", "task/b", "kd"])
        (['peer0/task'], ['task/a', 'task/b'])
    """
    parts = [each.split("/") for each in terms]
    student = term.split("/", maxsplit=1)[0] if "/" in term and not term.startswith("task/") else None
    for start in ([[student, "task"]] if student else []) + [["task"]]:
        if found := ["/".join(each) for each in parts if each[: len(start)] == start]:
            return found
    return []
