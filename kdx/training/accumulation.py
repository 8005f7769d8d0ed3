"""The gradient of one optimizer step, put together from micro-batches and ranks by what each term is a mean over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from kdx.batch import Batch
from kdx.losses import Count, Counted, Losses, Over
from kdx.schemes.base import Scheme

__all__ = ["accumulate_gradient"]


def accumulate_gradient(
    accelerator: Accelerator,
    engine: Any,
    forward: Callable[[Batch], Losses],
    scheme: Scheme,
    window: Sequence[Batch],
) -> Losses:
    """Runs forward and backward on the micro-batches of one step, so that the gradient is that of all as one batch.

    A term is the mean ``sum(count * value) / sum(count)`` over micro-batches and ranks. Where the batches tell the
    counts (:class:`kdx.Over`) the graph of a micro-batch is freed before the next one runs. From the first
    micro-batch on with a term whose count only its outputs tell, the graphs are kept until the last, for one backward.

    Args:
        accelerator: of the run.
        engine: the prepared scheme, whose gradients wait for the last micro-batch.
        forward: what runs the scheme on a batch.
        scheme: says what a batch counts.
        window: the micro-batches of this process.

    Returns:
        The losses of the step without graph: of all micro-batches and ranks.

    Raises:
        ValueError: a term says in one micro-batch how its count follows from the batch, and not in another.
    """
    if len(window) == 1 and accelerator.num_processes == 1:
        losses = forward(window[0])
        accelerator.backward(losses.total)
        return losses.detach()
    step = _Step(accelerator, scheme, window)
    for number, batch in enumerate(window, start=1):
        with nullcontext() if number == len(window) else accelerator.no_sync(engine):
            losses = forward(batch)
            if step.holds(losses):
                step.held.append((batch, losses))
            else:
                accelerator.backward(step.share(batch, losses))
    if step.held:
        step.count_held()
        accelerator.backward(torch.stack([step.share(batch, losses) for batch, losses in step.held]).sum())
    return step.losses()


class _Step:
    """The counts of a step and the sums of its terms so far."""

    def __init__(self, accelerator: Accelerator, scheme: Scheme, window: Sequence[Batch]) -> None:
        self.accelerator = accelerator
        self.scheme = scheme
        counts = [_sum(scheme.count(over, batch) for batch in window) for over in scheme.counted]
        self.totals: dict[Counted | str, Count] = dict(zip(scheme.counted, self._of_all_ranks(counts), strict=True))
        self.over: dict[str, Counted | None] = {}
        self.held: list[tuple[Batch, Losses]] = []
        self.sums: dict[str, Tensor] = {}

    def holds(self, losses: Losses) -> bool:
        """Whether the backward pass of these losses has to wait until all counts are known."""
        for name in losses.terms:
            over = losses.over.get(name, None if name in losses.counts else Over.ROWS)
            if self.over.setdefault(name, over) != over:
                raise ValueError(
                    f"term {name!r} is a mean over {_shown(self.over[name])} in one micro-batch and over "
                    f"{_shown(over)} in another of the same step; give it the same kind of count in every batch"
                )
        return bool(self.held) or any(self.over[name] is None for name in losses.terms)

    def count_held(self) -> None:
        """Adds up the counts that only the outputs tell."""
        names = [name for name, over in self.over.items() if over is None]
        counts = [_sum(losses.counts[name] for _, losses in self.held if name in losses.terms) for name in names]
        self.totals |= dict(zip(names, self._of_all_ranks(counts), strict=True))

    def share(self, batch: Batch, losses: Losses) -> Tensor:
        """The part of one micro-batch in the total; data parallelism takes the mean over ranks afterwards."""
        parts = []
        for name, term in losses.terms.items():
            over = self.over[name]
            count = losses.counts[name] if over is None else self.scheme.count(over, batch)
            part = term * _ratio(_number(count), self.totals[name if over is None else over], term)
            self.sums[name] = self.sums.get(name, 0) + part.detach()
            parts.append(part)
        total: Tensor = torch.stack(parts).sum() * self.accelerator.num_processes
        return total

    def losses(self) -> Losses:
        """The losses of the step, of all ranks."""
        values = self._of_all_ranks(list(self.sums.values()))
        terms = {name: torch.as_tensor(value) for name, value in zip(self.sums, values, strict=True)}
        counts = {name: self.totals[over or name] for name, over in self.over.items()}
        return Losses(torch.stack(list(terms.values())).sum(), terms, counts)

    def _of_all_ranks(self, values: Sequence[Count]) -> Sequence[Count]:
        if self.accelerator.num_processes == 1 or not values:
            return values
        device = self.accelerator.device
        wide = torch.float32 if device.type == "mps" else torch.float64
        together = torch.stack([torch.as_tensor(value, dtype=wide, device=device) for value in values])
        return list(self.accelerator.reduce(together, reduction="sum"))


def _sum(counts: Iterable[Count]) -> Count:
    return sum((_number(count) for count in counts), 0.0)


def _number(count: Count) -> Count:
    """A count to reckon with; one on a CPU is read at no cost."""
    return count.item() if isinstance(count, Tensor) and count.device.type == "cpu" else count


def _ratio(count: Count, total: Count, term: Tensor) -> Count:
    if isinstance(count, Tensor) or isinstance(total, Tensor):
        total = torch.as_tensor(total, device=term.device)
        return torch.where(total > 0, count / total, 0).to(term.dtype)
    return count / total if total else 0.0


def _shown(over: Counted | None) -> str:
    return "what its outputs tell" if over is None else over.value
