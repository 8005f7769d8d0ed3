"""The provenance of stored values: which knowledge may learn from them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from kdx.capture import Provenance
from kdx.errors import StoreWarning

__all__ = ["SampledClasses", "TopClasses", "WithoutPadding"]


@dataclass(frozen=True, slots=True)
class SampledClasses(Provenance):
    """Logits that are T times the log of an unbiased estimate of ``softmax(logits / T)`` (:mod:`kdx.store.sample`).

    Args:
        temperature: T; None where such estimates are combined in a way that is biased at every temperature.
    """

    temperature: float | None

    @override
    def check(self, what: str, tap: str, component: Any) -> None:
        if self.temperature is None:
            raise ValueError(
                f"{what}: the teacher's {tap!r} are combined of sampled classes in a way that is biased; combine them "
                "with over='probabilities', constant weights and the temperature they were sampled at, or store logits "
                "or topk instead"
            )
        if not component.accepts_estimate(self.temperature):
            raise ValueError(
                f"{what}: the teacher's {tap!r} are classes sampled at temperature {self.temperature:g}, from which "
                "soft-targets of that temperature learn without bias and nothing else does; set that temperature, or "
                "store logits or topk instead"
            )

    @staticmethod
    def combined(parts: Iterable[SampledClasses], *, temperature: float, linear: bool) -> SampledClasses | None:
        """The mean of several teachers, or None where none is an estimate.

        Args:
            parts: of the teachers that are estimates.
            temperature: at which the mean is taken.
            linear: whether it is linear in the probabilities; with logarithms, or weights that depend on the draws, it
                is not.
        """
        found = {part.temperature for part in parts}
        if not found:
            return None
        return SampledClasses(temperature if linear and found == {temperature} else None)


@dataclass(frozen=True, slots=True)
class TopClasses(Provenance):
    """Logits of the top classes, whose others share the mass they have at some temperature (:mod:`kdx.store.top_k`).

    Args:
        temperatures: at which that mass is right; several where teachers are combined.
        held: whether they are held as :class:`kdx.ops.SparseTargets`, from which nothing is learned at another one.
    """

    temperatures: frozenset[float]
    held: bool = False

    @override
    def check(self, what: str, tap: str, component: Any) -> None:
        softens = getattr(component, "temperature", None)  # as every component calls it that softens logits
        for stored in sorted(self.temperatures):
            if softens is not None and softens != stored and self.held and component.takes_held:
                raise ValueError(
                    f"{what}: has temperature {softens:g}, and the teacher's {tap!r} are top classes stored for "
                    f"temperature {stored:g}; what a few classes are at another temperature cannot be known: write the "
                    f"store with topk:K@{softens:g}, or set temperature {stored:g}"
                )
            if softens is not None and softens != stored:
                weigh = "much" if softens > stored else "little"
                warnings.warn(
                    f"{what}: softens at temperature {softens:g} the teacher's {tap!r}, top classes stored for "
                    f"temperature {stored:g}; the other classes together weigh too {weigh}: write the store with "
                    f"topk:K@{softens:g}, or set temperature {stored:g}",
                    StoreWarning,
                    stacklevel=2,
                )


@dataclass(frozen=True, slots=True)
class WithoutPadding(Provenance):
    """Sequences of which the store holds the tokens alone: at the padding of a batch there is nothing to learn.

    Args:
        predicted: number of a sample whose first token is to be predicted from the padding before it; None: there is
            none in the batch.
    """

    predicted: int | None = None

    @override
    def check(self, what: str, tap: str, component: Any) -> None:
        if not component.passes_padding:
            raise ValueError(
                f"{what}: learns from the padding of the batch too, and of {tap!r} the store holds the tokens alone; "
                "let it pass over padding (the task 'causal-lm' does, void=True, a mask), or give batches without "
                "padding"
            )
        if self.predicted is not None and component.kind == "response":
            raise ValueError(
                f"{what}: the first token of sample {self.predicted} is to be predicted from the padding before it, of "
                "which the store holds nothing; give the first token of a sequence the label -100, or pad behind it"
            )
