"""The base of components that compare layers token by token and pass over padding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Captured
from kdx.features.adapters import match
from kdx.features.feature import Feature
from kdx.features.matching import Strategy
from kdx.items import item_of
from kdx.knowledge.paired import PairedLayers
from kdx.losses import Count, Mean
from kdx.tap import TapNames, TapOptions

__all__ = ["TokenLayers", "real_tokens"]

ALL = "all"
"""The mask that every token passes."""


class TokenLayers(PairedLayers):
    """Base of knowledge that compares layers token by token; padding teaches nothing.

    The loss of a pair is the mean over the tokens of the batch that are no padding; the pairs are summed. Which tokens
    those are the inputs say by an ``attention_mask``; otherwise ``mask`` or ``padding`` does (:func:`real_tokens`). It
    is a :class:`kdx.Mean`, which counts the tokens of the first pair.

    A subclass writes :meth:`per_token`.

    Args:
        student: taps of the student's layers, from shallow to deep.
        teacher: taps of the teacher's layers.
        mask: the item of the inputs, ``[N, L]``, that is not 0 where a token is, as ``"attention_mask"`` or the path
            ``"[1]"``; ``"all"``: no token is padding; None: what the inputs say.
        padding: the id of the padding, where the inputs are token ids and have no mask.
        pairing: see :data:`kdx.features.Strategy`.
        seed: for ``pairing="random"``.
        **features: see :class:`kdx.tap.TapOptions`.

    Raises:
        ValueError: both ``mask`` and ``padding``; in a call, inputs of token ids that do not say what is padding.
    """

    def __init__(
        self,
        *,
        student: TapNames,
        teacher: TapNames,
        mask: str | None = None,
        padding: int | None = None,
        pairing: Strategy = "explicit",
        seed: int = 0,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, pairing=pairing, seed=seed, **features)
        if mask is not None and padding is not None:
            raise ValueError(f"mask and padding: expected one of the two, got mask={mask!r} and padding={padding}")
        self.mask = mask
        self.padding = padding

    @abstractmethod
    def per_token(
        self, pair: int, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], real: Tensor | None
    ) -> Tensor:
        """The loss of every token, ``[N, L]``.

        Args:
            pair: its number, from 0.
            student: what :meth:`operands` read of the student's layer.
            teacher: of the teacher's.
            real: bool ``[N, L]``, False for padding; None: there is none.
        """

    @abstractmethod
    def operands(
        self, student: Captured, teacher: Captured, layers: tuple[int, int]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """The tensors of one pair of layers that are compared, in float32 (float64 stays), each ``[N, L, ...]``."""

    @property
    @override
    def passes_padding(self) -> bool:
        return self.mask != ALL

    @override
    def compare(self, pair: int, student: Feature, teacher: Feature) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} compares tokens with the batch that they are of")

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch | None) -> Mean:
        s, t = self.layers(student, teacher)
        inputs = None if batch is None else batch.inputs
        losses, counts = [], []
        with self.in_full_precision(student):
            for pair, layers in enumerate(self.pairs_among(len(s), len(t))):
                sides = self.operands(student, teacher, layers)
                size, where = self.size_of(sides[0]), s[layers[0]].where
                real = real_tokens(inputs, size, mask=self.mask, padding=self.padding, who=where)
                per_token = self.per_token(pair, *sides, real)
                counted = self.counted(real)
                if counted is None:
                    count: Count = per_token.numel()
                    losses.append(per_token.sum() / max(1, count))
                else:
                    count = counted.sum()
                    losses.append(per_token.masked_fill(~counted, 0.0).sum() / count.clamp(min=1))
                counts.append(count)
        return Mean(torch.stack(losses).sum(), counts[0])

    def size_of(self, student: Mapping[str, Tensor]) -> tuple[int, int]:
        """Rows and tokens of what :meth:`operands` read of the student."""
        rows, tokens = next(iter(student.values())).shape[:2]
        return rows, tokens

    def counted(self, real: Tensor | None) -> Tensor | None:
        """Which tokens the mean is over: all that are no padding."""
        return real


def real_tokens(
    inputs: Any, size: tuple[int, int], *, mask: str | None = None, padding: int | None = None, who: str = "the feature"
) -> Tensor | None:
    """Says which tokens of a batch are no padding, bool ``[N, L]``; None: all of them.

    Args:
        inputs: those of a batch. An item ``attention_mask`` says it; images and other inputs without token ids have no
            padding.
        size: rows and tokens ``(N, L)`` of the features. One place (a pooled vector) is no token and counts.
        mask: the item to take instead, a name or a path as ``"[1]"``; ``"all"``: none is padding.
        padding: the id of the padding among token ids: inputs ``[N, L]``, or their item ``input_ids``.
        who: how messages name the feature.

    Raises:
        ValueError: token ids, and nothing says which are padding; no such item, or one of another size.

    Example:
        >>> real_tokens(torch.tensor([[5, 7, 0]]), (1, 3), padding=0)
        tensor([[ True,  True, False]])
    """
    if mask == ALL or inputs is None or size[1] == 1:
        return None
    names = list(inputs) if isinstance(inputs, Mapping) else []
    ids = inputs if isinstance(inputs, Tensor) else inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    if padding is not None:
        if not isinstance(ids, Tensor) or ids.is_floating_point():
            shown = f"the items {names}" if names else type(inputs).__name__
            raise ValueError(
                f"{who}: padding={padding} is an id among token ids, inputs [N, L] of whole numbers or their item "
                f"'input_ids', and the inputs are {shown}; give mask=, the item that says which tokens are padding"
            )
        return _fitting(ids != padding, size, f"padding={padding}", who)
    if mask is None and "attention_mask" in names:
        mask = "attention_mask"
    if mask is not None:
        try:
            found = item_of(inputs, mask if mask.startswith("[") else f"[{mask}]")
        except KeyError as error:
            raise ValueError(f"{who}: mask={mask!r} names no item of the inputs: {error.args[0]}") from error
        return _fitting(found != 0, size, f"mask={mask!r}", who)
    parts = list(inputs.values()) if names else inputs if isinstance(inputs, tuple | list) else [inputs]
    if any(isinstance(part, Tensor) and part.dim() == 2 and not part.is_floating_point() for part in parts):
        raise ValueError(
            f"{who}: the inputs are token ids and nothing says which of its {size[1]} tokens are padding, of which "
            "nothing is to be learned; give padding=0 (the id of the padding), mask= (the item of the inputs that is "
            "not 0 where a token is, as 'attention_mask'), or mask='all' if there is none"
        )
    return None


def token_features(student: Feature, teacher: Feature) -> tuple[Tensor, Tensor]:
    """Two features place by place, ``[N, L, C]`` and ``[N, L, C']``, matched by :func:`kdx.features.match`.

    Raises:
        ValueError: see :func:`kdx.features.match`.
    """
    s, t = match(student, teacher)
    if s.dim() == 2:
        return s[:, None], t[:, None]
    return s.flatten(2).mT, t.flatten(2).mT


def _fitting(real: Tensor, size: tuple[int, int], option: str, who: str) -> Tensor:
    if tuple(real.shape) != size:
        raise ValueError(
            f"{who}: {option} gives a mask of shape {list(real.shape)} for {list(size)} rows and tokens; compare "
            "layers with the tokens of the inputs, or say that no token is padding: mask='all'"
        )
    return real
