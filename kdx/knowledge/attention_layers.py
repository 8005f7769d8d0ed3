"""The base of components that read queries, keys and values of attention layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

from torch import Tensor
from typing_extensions import override

from kdx.capture import Captured
from kdx.features.feature import Feature
from kdx.features.matching import Strategy
from kdx.knowledge.tokens import TokenLayers
from kdx.tap import TapNames, TapOptions, taps_of

__all__ = ["AttentionLayers", "split_heads"]

PARTS = {"q": "queries", "k": "keys", "v": "values"}


class AttentionLayers(TokenLayers):
    """Base of knowledge on the queries, keys and values of attention layers, as their projections give them.

    Models give them in two forms: by a module each, as ``query``, ``key`` and ``value`` of BERT or ``q_proj``,
    ``k_proj`` and ``v_proj``; or side by side in one tensor ``[N, L, 3 D]``, as ``qkv`` of timm, ``c_attn`` of GPT-2
    and, by the tap ``name:qkv``, :class:`torch.nn.MultiheadAttention` do.

    Args:
        needed: the parts that the loss reads, of ``"qkv"``; ``""``: the taps are none of them.
        student: taps of the queries ``[N, L, D]``, from shallow to deep, or, with ``packed``, of all three.
        teacher: the same of the teacher.
        student_keys: taps of the keys, as many.
        teacher_keys: the same of the teacher.
        student_values: taps of the values, as many.
        teacher_values: the same of the teacher.
        packed: queries, keys and values lie side by side in what ``student`` and ``teacher`` tap.
        mask: see :class:`kdx.knowledge.TokenLayers`.
        padding: see there.
        pairing: see :data:`kdx.features.Strategy`.
        seed: for ``pairing="random"``.
        **features: see :class:`kdx.tap.TapOptions`.

    Raises:
        ValueError: keys or values that the loss needs and that are not named, or beside ``packed``; in a call, as many
            taps of keys as of queries are expected, and a width that three does not divide.
    """

    def __init__(
        self,
        needed: str,
        *,
        student: TapNames,
        teacher: TapNames,
        student_keys: TapNames | None,
        teacher_keys: TapNames | None,
        student_values: TapNames | None,
        teacher_values: TapNames | None,
        packed: bool,
        mask: str | None,
        padding: int | None,
        pairing: Strategy,
        seed: int,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(
            student=student, teacher=teacher, mask=mask, padding=padding, pairing=pairing, seed=seed, **features
        )
        self.needed, self.packed = needed, bool(packed)
        given = {
            "student": {"q": student, "k": student_keys, "v": student_values},
            "teacher": {"q": teacher, "k": teacher_keys, "v": teacher_values},
        }
        self.parts = {side: _parts(side, taps, needed, packed=self.packed) for side, taps in given.items()}
        self.student_taps, self.teacher_taps = (
            tuple(dict.fromkeys(tap for taps in parts.values() for tap in taps)) for parts in self.parts.values()
        )
        first = "q" if self.packed or not needed else needed[0]
        self.student_layers, self.teacher_layers = (parts[first] for parts in self.parts.values())

    @override
    def operands(
        self, student: Captured, teacher: Captured, layers: tuple[int, int]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        return self._read_side("student", student, layers[0]), self._read_side("teacher", teacher, layers[1])

    def _read_side(self, side: str, captured: Captured, layer: int) -> dict[str, Tensor]:
        read = self.student_features if side == "student" else self.teacher_features
        features = {part: read(captured, taps) for part, taps in self.parts[side].items()}
        if self.packed:
            whole = features["q"][layer]
            if whole.channels % 3:
                raise ValueError(
                    f"{whole.where} has {whole.channels} channels, which are not queries, keys and values of one width "
                    "side by side; tap another module, or the three by themselves without packed"
                )
            three = zip("qkv", _tokens(whole).chunk(3, dim=2), strict=True)
            return {part: each for part, each in three if part in self.needed}
        numbers = {PARTS[part]: len(each) for part, each in features.items()}
        if len(set(numbers.values())) > 1:
            raise ValueError(
                f"{type(self).__name__}: the {side}'s taps give layers of different number, {numbers}; tap as many of "
                "each, in one order"
            )
        return {part: _tokens(each[layer]) for part, each in features.items()}


def _parts(side: str, given: Mapping[str, TapNames | None], needed: str, *, packed: bool) -> dict[str, tuple[str, ...]]:
    """The taps of the parts that are read of one side."""
    others = [part for part in "kv" if given[part] is not None]
    first = given["q"]
    assert first is not None  # an option without a default
    if packed and others:
        raise ValueError(
            f"{side}_{PARTS[others[0]]}: packed=True says that {side} taps queries, keys and values in one tensor; "
            "leave one of the two out"
        )
    if packed or not needed:
        return {"q": taps_of(first)}
    parts = {}
    for part in needed:
        if (taps := given[part]) is None:
            raise ValueError(
                f"{side}_{PARTS[part]}: the loss needs the {PARTS[part]} of the {side}; tap the modules that give them "
                "(key, k_proj, k_lin; value, v_proj, v_lin), or write packed=True where one gives queries, keys and "
                "values side by side"
            )
        parts[part] = taps_of(taps)
    return parts


def split_heads(x: Tensor, heads: int, what: str) -> Tensor:
    """The vectors of tokens as heads, ``[N, L, D]`` to ``[N, heads, L, D / heads]``.

    Raises:
        ValueError: D is no multiple of ``heads``; the message names ``what``.
    """
    if x.shape[2] % heads:
        fitting = [number for number in range(1, x.shape[2] + 1) if x.shape[2] % number == 0]
        raise ValueError(
            f"heads: {what} have {x.shape[2]} channels, which {heads} heads do not divide; give one of "
            f"{', '.join(map(str, fitting))}"
        )
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _tokens(feature: Feature) -> Tensor:
    """``[N, L, D]`` in float32 (float64 stays)."""
    if not feature.is_tokens:
        raise ValueError(
            f"{feature.where} has shape {list(feature.tensor.shape)} and layout {feature.layout.axes!r}; expected the "
            "queries, keys or values of tokens, [N, L, D]: tap the projections of an attention layer"
        )
    return feature.full().channels_first().mT
