"""Self-attention relations: tokens relate to each other as in the teacher (MiniLMv2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import torch
from torch import Tensor
from typing_extensions import override

from kdx.features.matching import Strategy
from kdx.features.operands import in_full_precision
from kdx.knowledge.attention_layers import AttentionLayers, split_heads
from kdx.ops import softmax_kl
from kdx.tap import TapNames, TapOptions

__all__ = ["MiniLM", "minilm"]


@in_full_precision
def minilm(
    student: Tensor,
    teacher: Tensor,
    student_other: Tensor | None = None,
    teacher_other: Tensor | None = None,
    *,
    heads: int,
    real: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Divergence between the relations of the tokens' vectors in teacher and student, of every token.

    A relation is ``softmax(A B' / sqrt(d))`` over the tokens, of vectors that are split into ``heads`` parts of d
    channels; the divergence is KL(teacher || student), the mean over the heads.

    Args:
        student: A, ``[N, L, D]``, any float dtype; computed in float32 (float64 stays).
        teacher: A of the teacher, ``[N, L, D']``.
        student_other: B, ``[N, L, D2]`` of as many channels a head; None: A itself.
        teacher_other: B of the teacher; None: A itself.
        heads: relation heads, a divisor of all widths; they need not be the attention heads.
        real: bool ``[N, L]``, the tokens that are no padding; None: all. The others are in no softmax.
        backend: kernel backend of the divergence, ``"auto"`` chooses.

    Returns:
        ``[N, L]``, 0 for padding, with gradients to all.

    Raises:
        ValueError: other numbers of rows or tokens, or heads that do not divide a width.

    Example:
        >>> import torch
        >>> apart, alike = torch.tensor([[[3.0, 0.0], [0.0, 3.0]]]), torch.zeros(1, 2, 4)
        >>> [round(x, 3) for x in minilm(alike, apart, heads=1)[0].tolist()]
        [0.68, 0.68]
    """
    if student.dim() != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"expected vectors [N, L, D] of the same rows and tokens, got {list(student.shape)} of the student and "
            f"{list(teacher.shape)} of the teacher; both have to read the same tokens"
        )
    s = _relation(student, student if student_other is None else student_other, heads, "the student's vectors")
    t = _relation(teacher, teacher if teacher_other is None else teacher_other, heads, "the teacher's vectors")
    rows = None
    if real is not None:
        hidden = ~real[:, None, None]  # [N, 1, 1, L]
        s, t = s.masked_fill(hidden, -torch.inf), t.masked_fill(hidden, -torch.inf)
        rows = real[:, None].expand(s.shape[:3])
    return softmax_kl(s, t, mask=rows, reduction="none", backend=backend).mean(1)


def _relation(a: Tensor, b: Tensor, heads: int, what: str) -> Tensor:
    """``A B' / sqrt(d)`` of every head, ``[N, heads, L, L]``."""
    one, other = split_heads(a, heads, what), split_heads(b, heads, what)
    if one.shape != other.shape:
        raise ValueError(
            f"{what} have widths {a.shape[2]} and {b.shape[2]}; a relation between two kinds needs one width (grouped "
            "queries are wider than keys): relate queries with queries and keys with keys"
        )
    scores: Tensor = one @ other.mT / one.shape[3] ** 0.5
    return scores


class MiniLM(AttentionLayers):
    """Relations between the tokens' queries, keys and values: self-attention relation distillation of MiniLMv2.

    Loss: ``sum_r KL(R_t || R_s)`` over the relations r, by default queries with queries, keys with keys, values with
    values, each with weight 1. ``R = softmax(A A' / sqrt(d))`` over the tokens of a row, where the vectors of all
    attention heads are put side by side and split anew into ``heads`` relation heads of d channels, so that models with
    other numbers of attention heads and other widths compare. Averaged over the heads and the tokens of the batch that
    are no padding (of one text the paper's mean), which are in no softmax either, summed over the pairs of layers. No
    temperature, no ``T^2``. Gradients reach the student. Nothing is learned.

    The paper pairs one layer: the student's last with the last of a base-size teacher, or an upper middle one of a
    large teacher (the 21st of 24 of BERT-large), with 48 relation heads for a base-size teacher, 768 wide, and 64 for a
    large one.
    Memory beside the features: a few ``N * heads * L * L`` floats for each relation.

    Args:
        student: taps of queries ``[N, L, D]``, or with ``packed`` of ``[N, L, 3 D]``.
        teacher: the same of the teacher.
        heads: number of relation heads, a divisor of both widths.
        relations: pairs of q (queries), k (keys), v (values).
        student_keys: taps of the student's keys, as many as of queries.
        teacher_keys: the same of the teacher.
        student_values: taps of the student's values, as many as of queries.
        teacher_values: the same of the teacher.
        packed: queries, keys and values lie side by side in one tensor, as ``qkv`` of timm, ``c_attn`` of GPT-2 and
            the tap ``name:qkv`` of :class:`torch.nn.MultiheadAttention` give them.
        mask: the item of the inputs, ``[N, L]``, that is not 0 where a token is, ``"all"`` for no padding; None: their
            ``attention_mask``, see :class:`kdx.knowledge.TokenLayers`.
        padding: the id of the padding, where the inputs are token ids alone.
        pairing: see :data:`kdx.features.Strategy`.
        seed: for ``pairing="random"``.
        backend: kernel backend, ``"auto"`` chooses; see :func:`kdx.ops.explain`.
        **features: see :class:`kdx.tap.TapOptions`.

    Raises:
        ValueError: another relation, no relation, keys or values that a relation needs and that are not named; in a
            call, ``heads`` that do not divide a width.

    Paper: Wang et al., MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained
    Transformers, Findings of ACL 2021, https://arxiv.org/abs/2012.15828.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> apart, alike = torch.tensor([[[3.0, 0.0], [0.0, 3.0]]]), torch.zeros(1, 2, 4)
        >>> relations = MiniLM(student="query", teacher="query", heads=1, relations=("qq",))
        >>> round(relations(Captured({"query": alike}), Captured({"query": apart}), None).value.item(), 3)
        0.68
    """

    def __init__(
        self,
        *,
        student: TapNames,
        teacher: TapNames,
        heads: int,
        relations: tuple[str, ...] = ("qq", "kk", "vv"),
        student_keys: TapNames | None = None,
        teacher_keys: TapNames | None = None,
        student_values: TapNames | None = None,
        teacher_values: TapNames | None = None,
        packed: bool = False,
        mask: str | None = None,
        padding: int | None = None,
        pairing: Strategy = "explicit",
        seed: int = 0,
        backend: str = "auto",
        **features: Unpack[TapOptions],
    ) -> None:
        known = [a + b for a in "qkv" for b in "qkv"]
        wrong = [name for name in relations if name not in known]
        if wrong or not relations or isinstance(relations, str):
            raise ValueError(
                f"relations: expected some of {', '.join(known)}, as ('qq', 'kk', 'vv'), got {relations!r}"
            )
        super().__init__(
            "".join(part for part in "qkv" if any(part in name for name in relations)),
            student=student,
            teacher=teacher,
            student_keys=student_keys,
            teacher_keys=teacher_keys,
            student_values=student_values,
            teacher_values=teacher_values,
            packed=packed,
            mask=mask,
            padding=padding,
            pairing=pairing,
            seed=seed,
            **features,
        )
        if not heads >= 1:
            raise ValueError(f"heads: expected a number of relation heads, 1 or more, got {heads}")
        self.heads = heads
        self.relations = tuple(relations)
        self.backend = backend

    @override
    def per_token(
        self, pair: int, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], real: Tensor | None
    ) -> Tensor:
        losses = [
            minilm(
                student[name[0]],
                teacher[name[0]],
                student[name[1]],
                teacher[name[1]],
                heads=self.heads,
                real=real,
                backend=self.backend,
            )
            for name in self.relations
        ]
        return torch.stack(losses).sum(0)

    @override
    def extra_repr(self) -> str:
        return f"heads={self.heads}, relations={self.relations}"
