"""Attention scores: heads of a transformer attend as the teacher's do (TinyBERT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Unpack, get_args

from torch import Tensor
from typing_extensions import override

from kdx.capture import Captured
from kdx.features.feature import Feature
from kdx.features.matching import Strategy
from kdx.features.operands import Variant, check_choice, in_full_precision
from kdx.knowledge.attention_layers import AttentionLayers, split_heads
from kdx.tap import TapNames, TapOptions

__all__ = ["AttentionScores", "attention_scores", "scores_of"]


def scores_of(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Scores of attention before the softmax, ``Q K' / sqrt(d)`` of every head, ``[N, heads, L, L]``.

    Args:
        queries: ``[N, L, D]``, the heads side by side.
        keys: of the same shape.
        heads: their number, which divides D; ``d = D / heads``.
    """
    q, k = split_heads(queries, heads, "queries"), split_heads(keys, heads, "keys")
    if q.shape != k.shape:
        raise ValueError(
            f"queries and keys have shapes {list(queries.shape)} and {list(keys.shape)}; attention scores need as many "
            "heads of keys as of queries (grouped queries have fewer): take 'minilm', which compares keys with keys"
        )
    scores: Tensor = q @ k.mT / q.shape[3] ** 0.5
    return scores


@in_full_precision
def attention_scores(student: Tensor, teacher: Tensor, *, real: Tensor | None = None) -> Tensor:
    """Mean squared error of the scores, or weights, of each query: over the heads and the keys that are no padding.

    Args:
        student: ``[N, H, L, L]``: queries along the third axis, keys along the fourth; any float dtype, computed in
            float32 (float64 stays).
        teacher: of the same shape.
        real: bool ``[N, L]``, the keys that are no padding; None: all.

    Returns:
        ``[N, L]``, one number for every query, with gradients to both.

    Raises:
        ValueError: other shapes, or heads that are not as many.

    Example:
        >>> import torch
        >>> attention_scores(torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 3.0], [0.0, 2.0]]]]))
        tensor([[5., 2.]])
    """
    if student.dim() != 4 or student.shape != teacher.shape:
        raise ValueError(
            f"expected attention of one shape [N, heads, L, L], got {list(student.shape)} of the student and "
            f"{list(teacher.shape)} of the teacher: TinyBERT compares head by head; give the student as many heads, or "
            "take 'minilm', which splits both into as many"
        )
    square = (student - teacher).square().mean(1)  # [N, L, L]
    if real is None:
        return square.mean(2)
    return square.masked_fill(~real[:, None], 0.0).sum(2) / real.sum(1, keepdim=True).clamp(min=1)


class AttentionScores(AttentionLayers):
    """Mean squared error between attention scores before the softmax, head by head: the attention loss of TinyBERT.

    Loss: ``mean_h mean_ij (A_s - A_t)_hij^2`` with ``A = Q K' / sqrt(d)``, over the heads h, the queries i of the batch
    and the keys j of their row that are no padding (of one text the paper's mean over its l x l pairs), summed over the
    pairs of layers; no ``T^2``. Student and teacher need as many heads; their widths may differ. Gradients reach the
    student. Nothing is learned. ``variant="paper"`` is that; ``"code"``, as the authors' code, takes the scores of
    padded keys for 0 and averages over all L x L pairs of a padded row, so that short texts weigh less.

    Tap the modules that give queries and keys, which every implementation of attention runs, and say how many heads
    there are: the scores are computed from them (before rotary positions, where a model has some). Or, without keys,
    tap attention weights ``[N, H, L, L]``, as ``encoder.layer.*.attention.self[1]`` of models of transformers with
    ``attn_implementation="eager"``; those are after the softmax and, while a student trains, after its dropout, and the
    paper found them worse. With other implementations there are none.

    The paper maps student layer m to teacher layer ``m M_t / M_s``: ``pairing="uniform"``.

    Args:
        student: taps of queries ``[N, L, D]``, from shallow to deep, of attention weights ``[N, H, L, L]``, or with
            ``packed`` of ``[N, L, 3 D]``.
        teacher: the same of the teacher.
        heads: number of attention heads of both models, for queries and keys.
        student_keys: taps of the student's keys ``[N, L, D]``, as many as of queries.
        teacher_keys: the same of the teacher.
        packed: queries, keys and values lie side by side in one tensor, as ``qkv`` of timm, ``c_attn`` of GPT-2 and
            the tap ``name:qkv`` of :class:`torch.nn.MultiheadAttention` give them.
        variant: ``"paper"`` or ``"code"``, see above.
        mask: the item of the inputs, ``[N, L]``, that is not 0 where a token is, ``"all"`` for no padding; None: their
            ``attention_mask``, see :class:`kdx.knowledge.TokenLayers`.
        padding: the id of the padding, where the inputs are token ids alone.
        pairing: see :data:`kdx.features.Strategy`.
        seed: for ``pairing="random"``.
        **features: see :class:`kdx.tap.TapOptions`.

    Raises:
        ValueError: no ``heads`` beside queries, keys of one side alone; in a call, heads that are not as many.

    Paper: Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding, Findings of EMNLP 2020,
    https://arxiv.org/abs/1909.10351; code: https://github.com/huawei-noah/Pretrained-Language-Model.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> s = Captured({"q": torch.ones(1, 2, 4), "k": torch.ones(1, 2, 4)})
        >>> t = Captured({"q": torch.ones(1, 2, 8), "k": torch.zeros(1, 2, 8)})
        >>> taps = {"student": "q", "student_keys": "k", "teacher": "q", "teacher_keys": "k"}
        >>> round(AttentionScores(**taps, heads=2)(s, t, None).value.item(), 4)  # 2 / sqrt(2) against 0
        2.0
    """

    maps: ClassVar[bool] = True

    def __init__(
        self,
        *,
        student: TapNames,
        teacher: TapNames,
        heads: int | None = None,
        student_keys: TapNames | None = None,
        teacher_keys: TapNames | None = None,
        packed: bool = False,
        variant: Variant = "paper",
        mask: str | None = None,
        padding: int | None = None,
        pairing: Strategy = "explicit",
        seed: int = 0,
        **features: Unpack[TapOptions],
    ) -> None:
        weights = not packed and student_keys is None and teacher_keys is None
        super().__init__(
            "" if weights else "qk",
            student=student,
            teacher=teacher,
            student_keys=student_keys,
            teacher_keys=teacher_keys,
            student_values=None,
            teacher_values=None,
            packed=packed,
            mask=mask,
            padding=padding,
            pairing=pairing,
            seed=seed,
            **features,
        )
        check_choice("variant", variant, get_args(Variant))
        if not weights and heads is None:
            raise ValueError(
                "heads: expected the number of attention heads of queries and keys, got None; give heads=12"
            )
        if weights and heads is not None:
            raise ValueError(
                f"heads: attention weights [N, heads, L, L] have their heads on an axis, got heads={heads}; name the "
                "keys, student_keys= and teacher_keys=, or packed=True, if queries are tapped, or leave heads out"
            )
        self.heads = heads
        self.variant: Variant = variant

    @override
    def operands(
        self, student: Captured, teacher: Captured, layers: tuple[int, int]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        if self.needed:
            return super().operands(student, teacher, layers)
        s, t = self.layers(student, teacher)
        return {"weights": _weights(s[layers[0]])}, {"weights": _weights(t[layers[1]])}

    @override
    def size_of(self, student: Mapping[str, Tensor]) -> tuple[int, int]:
        if self.needed:
            return super().size_of(student)
        weights = student["weights"]
        return weights.shape[0], weights.shape[3]

    @override
    def per_token(
        self, pair: int, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], real: Tensor | None
    ) -> Tensor:
        s, t = self._attention(student), self._attention(teacher)
        if self.variant == "code" and real is not None:
            s, t = (each.masked_fill(~real[:, None, None], 0.0) for each in (s, t))
            return attention_scores(s, t)
        return attention_scores(s, t, real=real)

    @override
    def counted(self, real: Tensor | None) -> Tensor | None:
        return None if self.variant == "code" else real

    def _attention(self, side: Mapping[str, Tensor]) -> Tensor:
        return scores_of(side["q"], side["k"], self.heads) if self.heads is not None else side["weights"]

    @override
    def extra_repr(self) -> str:
        return f"heads={self.heads}, variant={self.variant!r}"


def _weights(feature: Feature) -> Tensor:
    """Attention weights ``[N, H, L, L]`` in float32 (float64 stays)."""
    weights = feature.tensor
    if weights.dim() != 4 or weights.shape[2] != weights.shape[3]:
        raise ValueError(
            f"{feature.where} has shape {list(weights.shape)}; expected attention weights [N, heads, L, L]. If these "
            "are queries, name the keys, student_keys= and teacher_keys=, or packed=True where one tensor holds both, "
            "and heads="
        )
    return feature.full().tensor
