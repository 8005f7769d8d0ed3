"""What a scheme returns, and the task loss that lives with unlabelled samples."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from kdx.batch import IGNORE

__all__ = ["Losses", "cross_entropy", "is_task", "scalar", "task_of"]


class Losses(NamedTuple):
    """The losses of one batch.

    Args:
        total: scalar to call ``backward`` on; the sum of the terms.
        terms: name -> scalar, each already multiplied by its weight.
    """

    total: Tensor
    terms: dict[str, Tensor]

    @classmethod
    def of(cls, terms: dict[str, Tensor]) -> Losses:
        """Losses whose total is the sum of ``terms``.

        Raises:
            ValueError: there are none.
            TypeError: one is not a scalar.
        """
        if not terms:
            raise ValueError("a scheme needs at least one term: a task loss or one knowledge component")
        for name, term in terms.items():
            scalar(f"term {name!r}", term)
        total, *rest = terms.values()
        for term in rest:
            total = total + term
        return cls(total, terms)

    @classmethod
    def joined(cls, parts: Sequence[Losses]) -> Losses:
        """The losses of the phases of one step; terms of one name are added."""
        if len(parts) == 1:
            return parts[0]
        terms: dict[str, Tensor] = {}
        for part in parts:
            for name, term in part.terms.items():
                terms[name] = terms[name] + term if name in terms else term
        return cls.of(terms)

    def detach(self) -> Losses:
        """The same numbers without their graph."""
        return Losses(self.total.detach(), {name: term.detach() for name, term in self.terms.items()})


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


def cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the labelled rows; 0 with zero gradient when no row has a label.

    :func:`torch.nn.functional.cross_entropy` gives NaN there, which few-label batches reach by chance.

    Args:
        logits: ``[N, C]``, any float dtype.
        targets: ``[N]`` int64; ``-100`` marks a row without a label.
        label_smoothing: share of a label's mass that is spread over all classes, as in torch.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> round(cross_entropy(torch.zeros(2, 10), torch.tensor([3, -100])).item(), 4)
        2.3026
        >>> cross_entropy(torch.zeros(2, 10), torch.tensor([-100, -100])).item()
        0.0
    """
    total = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum", label_smoothing=label_smoothing)
    return total / (targets != IGNORE).sum().clamp(min=1)


def is_task(term: str) -> bool:
    """Whether a term is a task loss, ``task`` or ``<student>/task``."""
    return term.rpartition("/")[2] == "task"


def task_of(term: str, terms: Container[str]) -> str:
    """The task loss that a term stands beside: of several students that of its own, ``<student>/task``."""
    own = f"{term.rpartition('/')[0]}/task"
    return own if own in terms else "task"
