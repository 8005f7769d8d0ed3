"""The tensors that one pass of a model gave, by tap, and answers that are not held as logits."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from kdx.errors import CaptureError, nearest
from kdx.inference import usable
from kdx.layout import Layout, UnknownLayout
from kdx.linear_logits import LinearLogits

if TYPE_CHECKING:
    from kdx.ops import SparseTargets

__all__ = ["LOGITS", "Captured", "Held", "Provenance"]

LOGITS = "logits"
"""The tap that is the model's own output."""

Held: TypeAlias = "Tensor | LinearLogits | SparseTargets"
"""An answer of a model as it is held: logits, what they are made of, or a few classes of each row."""


class Provenance(ABC):
    """Says what a captured tensor is good for that did not simply come out of a model."""

    @abstractmethod
    def check(self, what: str, tap: str, component: Any) -> None:
        """Raises or warns if a component must not, or should not, learn from the tensor.

        Args:
            what: how a message names the component.
            tap: of the tensor.
            component: the :class:`kdx.Knowledge` that reads it.
        """


class Captured(dict[str, Tensor]):
    """Tap name -> tensor, for one forward pass of one model.

    Tensors made under ``torch.inference_mode``, as by a model that turns it on by itself, are cloned, so that a loss
    can be computed from them.

    Args:
        values: concrete tap name -> tensor, in the order the taps were asked for.
        patterns: tap as written (a glob, say) -> the concrete names it stands for.
        provenance: tap -> what its tensor is, where it is not simply what a model gave, as the sampled or top classes
            of a store; asked before knowledge reads it.
        layouts: tap -> what the axes of its tensor mean, or that nobody knows. A tensor without an entry is laid out as
            kdx documents: ``[N, C]``, tokens ``[N, L, C]``, ``[N, C, H, W]``, ``[N, C, D, H, W]``.
        held: tap -> what :meth:`response` gives instead of the tensor: :class:`kdx.LinearLogits`,
            :class:`kdx.ops.SparseTargets`, or a tensor in a narrower dtype.
        later: tap -> function that makes its tensor when it is first asked for, beside what is held of it. A tap that
            is held and has neither a value nor such a function has no tensor.

    Example:
        >>> import torch
        >>> logits = LinearLogits(torch.ones(4, 3), torch.ones(7, 3))
        >>> captured = Captured({"norm": torch.ones(4, 3)}, held={"logits": logits})
        >>> list(captured.response("logits").shape), list(captured)
        ([4, 7], ['norm'])
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        patterns: Mapping[str, tuple[str, ...]] | None = None,
        *,
        provenance: Mapping[str, tuple[Provenance, ...]] | None = None,
        layouts: Mapping[str, Layout | UnknownLayout] | None = None,
        held: Mapping[str, Held] | None = None,
        later: Mapping[str, Callable[[], Tensor]] | None = None,
    ) -> None:
        super().__init__(usable(values))
        self.patterns = dict(patterns or {})
        self.provenance = dict(provenance or {})
        self.layouts = dict(layouts or {})
        self.held = dict(held or {})
        self.later = dict(later or {})

    def __missing__(self, name: str) -> Tensor:
        if name in self.later:
            self[name] = made = self.later[name]()
            return made
        if isinstance(held := self.held.get(name), LinearLogits):
            raise CaptureError(
                f"the tensor of tap {name!r} was asked for, and it is held as hidden states and the head that they go "
                f"through, so that logits {list(held.shape)} are never made; soft-targets, reverse-kl, jsd and the "
                "task 'causal-lm' take it so (captured.response(tap)). For anything else leave kdx.Head out of output="
            )
        if name in self.held:
            raise CaptureError(
                f"the tensor of tap {name!r} was asked for, and it is held as {type(self.held[name]).__name__} without "
                "a way to make it; read captured.response(tap)"
            )
        if name == LOGITS:
            raise CaptureError(
                "the model returned no logits; pass output=, which finds them in what it returns, or give the task "
                "heads and read one of them, as logits[name]. Of a language model nothing was said to read them: "
                "name 'logits' among the taps of what does"
            )
        raise CaptureError(f"tap {name!r} was not captured; {nearest(name, self)}")

    @property
    def logits(self) -> Tensor:
        """The model's output, usually ``[N, C]``."""
        return self[LOGITS]

    def names(self, taps: str | Iterable[str]) -> list[str]:
        """Concrete names of one or several taps as written, globs expanded in the order of the model."""
        asked = (taps,) if isinstance(taps, str) else taps
        return [name for tap in asked for name in self.patterns.get(tap, (tap,))]

    def select(self, taps: str | Iterable[str]) -> list[Tensor]:
        """Tensors of one or several taps as written, globs expanded in the order of the model."""
        return [self[name] for name in self.names(taps)]

    def response(self, tap: str) -> Held:
        """The answer at a tap as it is held: its tensor, or what stands for logits that are not made whole."""
        return self.held[tap] if tap in self.held else self[tap]

    def having(self, values: Mapping[str, Tensor]) -> Captured:
        """The same taps with other tensors, whose axes mean what those of the old ones did; taps that are held and get
        no tensor stay so.
        """
        held = {tap: value for tap, value in self.held.items() if values.get(tap) is self.get(tap)}
        later = {tap: make for tap, make in self.later.items() if tap not in values}
        return Captured(values, self.patterns, provenance=self.provenance, layouts=self.layouts, held=held, later=later)

    def detach(self) -> Captured:
        """The same tensors without their graph."""
        found = self.having({name: value.detach() for name, value in self.items()})
        found.held = {
            tap: value.detach() if isinstance(value, Tensor | LinearLogits) else value
            for tap, value in self.held.items()
        }
        found.later = {tap: functools.partial(_detached, make) for tap, make in self.later.items() if tap not in self}
        return found


def _detached(make: Callable[[], Tensor]) -> Tensor:
    return make().detach()
