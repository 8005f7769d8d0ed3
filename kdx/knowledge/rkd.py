"""Relational knowledge distillation: distances and angles between samples."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor
from typing_extensions import override

from kdx import ops
from kdx.capture import LOGITS
from kdx.features.matching import Strategy
from kdx.features.operands import check_same_rows, in_full_precision
from kdx.knowledge.relation import Relation, unit_rows
from kdx.ranges import check_number
from kdx.tap import TapNames, TapOptions

__all__ = ["RKD", "rkd"]


@in_full_precision
def rkd(
    student: Tensor,
    teacher: Tensor,
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
    delta: float = 1.0,
    student_l2: bool = False,
    teacher_l2: bool = False,
    backend: str = "auto",
) -> Tensor:
    """``distance_weight RKD-D + angle_weight RKD-A`` of two features ``[N, ...]``, a scalar; see :class:`RKD`."""
    check_same_rows(student, teacher)
    s, t = student.flatten(1), teacher.flatten(1)
    return ops.rkd(
        unit_rows(s) if student_l2 else s,
        unit_rows(t) if teacher_l2 else t,
        distance_weight=distance_weight,
        angle_weight=angle_weight,
        delta=delta,
        backend=backend,
    )


class RKD(Relation):
    """Distances between pairs and angles between triples of samples, in student and teacher.

    Loss: ``distance_weight mean_ij h(d_ij / mu - e_ij / nu)``
    ``+ angle_weight mean_ijk h(cos_s(j, i, k) - cos_t(j, i, k))`` with Huber's ``h`` of width ``delta``. ``d`` and
    ``e`` are the distances in student and teacher, ``mu`` and ``nu`` the means of the positive ones, ``cos(j, i, k)``
    is the cosine of the angle at sample i. Means are over all ``N^2`` and ``N^3`` entries, degenerate ones counting 0;
    summed over the pairs of layers. No ``T^2``. The loss does not change under rotation, translation or uniform scale
    of a feature. Gradients reach both sides; exact duplicates get none through their pair. Numerics and memory
    (``N^2``) are those of :func:`kdx.ops.rkd`.

    The weights 25 and 50 are the authors' for classification beside the cross-entropy. For metric learning this loss
    stands alone with 1 and 2, the teacher's embeddings scaled to length 1 and the student's free
    (``teacher_l2=True``). Take the embedding or the pooled feature; on maps every pixel is a coordinate.

    Args:
        distance_weight: weight of RKD-D; 0 leaves it out.
        angle_weight: weight of RKD-A; 0 leaves it out.
        delta: where Huber's loss turns from square to linear.
        student_l2: scale the student's features to length 1 first.
        teacher_l2: scale the teacher's features to length 1 first.
        student: tap or taps ``[N, ...]``; any width.
        teacher: tap or taps; any width.
        pairing: which student layer learns from which teacher layer, see :data:`kdx.features.Strategy`.
        seed: for ``pairing="random"``.
        backend: kernel backend, ``"auto"`` chooses; see :func:`kdx.ops.explain`.
        **features: see :class:`kdx.tap.TapOptions`.

    Paper: Park et al., Relational Knowledge Distillation, CVPR 2019, https://arxiv.org/abs/1904.05068;
    code: https://github.com/lenscloth/RKD.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> t = Captured({"logits": torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])})
        >>> s = Captured({"logits": torch.tensor([[0.0], [1.0], [2.0]])})
        >>> round(RKD(distance_weight=1, angle_weight=0)(s, t, None).item(), 4)
        0.0556
    """

    def __init__(
        self,
        *,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        delta: float = 1.0,
        student_l2: bool = False,
        teacher_l2: bool = False,
        student: TapNames = LOGITS,
        teacher: TapNames = LOGITS,
        pairing: Strategy = "explicit",
        seed: int = 0,
        backend: str = "auto",
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, pairing=pairing, seed=seed, **features)
        self.distance_weight = check_number("distance_weight", distance_weight, least=0)
        self.angle_weight = check_number("angle_weight", angle_weight, least=0)
        self.delta = check_number("delta", delta, above=0)
        self.student_l2, self.teacher_l2 = bool(student_l2), bool(teacher_l2)
        self.backend = backend

    @override
    def relation(self, student: Tensor, teacher: Tensor) -> Tensor:
        return rkd(
            student,
            teacher,
            distance_weight=self.distance_weight,
            angle_weight=self.angle_weight,
            delta=self.delta,
            student_l2=self.student_l2,
            teacher_l2=self.teacher_l2,
            backend=self.backend,
        )

    @override
    def extra_repr(self) -> str:
        weights = f"distance_weight={self.distance_weight}, angle_weight={self.angle_weight}"
        return f"{weights}, student_l2={self.student_l2}, teacher_l2={self.teacher_l2}"
