"""Instance relationship graph: samples as vertices, distances as edges, and how both change from layer to layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack

import torch
from torch import Tensor
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import LOGITS, Captured
from kdx.features.feature import Feature
from kdx.features.gathering import whole_batch
from kdx.features.operands import Variant, check_choice, check_same_outputs, check_same_rows, in_full_precision
from kdx.knowledge.base import Knowledge
from kdx.ops import pairwise_sq_dist
from kdx.ranges import check_number
from kdx.tap import TapNames, TapOptions

__all__ = ["IRG", "Transform", "edges", "irg", "transformation"]

Transform = Literal["vertex", "edge", "both"]
"""The part of the graph that is compared from layer to layer."""


def edges(feature: Feature | Tensor, *, variant: Variant = "paper") -> Tensor:
    """Squared distances between the samples of a layer, over the largest of them; 0 where all samples are equal.

    Args:
        feature: ``[N, D]``, or a map or tokens, which are pooled to a vector (:func:`kdx.features.to_vector`).
        variant: ``"code"`` takes the largest distance for a constant in the backward pass.

    Returns:
        ``[N, N]`` in [0, 1], in float32 (float64 for float64 features).
    """
    return _over_largest(pairwise_sq_dist(_vector(feature)), variant)


def transformation(shallow: Feature | Tensor, deep: Feature | Tensor, *, variant: Variant = "paper") -> Tensor:
    """Squared distance of each sample between two layers of one width, over the largest of them.

    Args:
        shallow: ``[N, D]``, or a map or tokens, which are pooled to a vector.
        deep: likewise, of the same width D.
        variant: see :func:`edges`.

    Returns:
        ``[N]`` in [0, 1], in float32 (float64 for float64 features).

    Raises:
        ValueError: layers of different width.
    """
    one, other = _vector(shallow), _vector(deep)
    if one.shape != other.shape:
        raise ValueError(
            f"layers of pooled shape {list(one.shape)} and {list(other.shape)} cannot be subtracted; tap layers of one "
            "stage, or compare edges instead: transform='edge'"
        )
    return _over_largest((one - other).square().sum(dim=1), variant)


def irg(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *,
    edge_weight: float = 5.0,
    transform_weight: float = 5.0,
    transform: Transform = "vertex",
    variant: Variant = "paper",
) -> Tensor:
    """Edges and transformations of the graphs of several layers, a scalar; see :class:`IRG`.

    The vertices are no part of it.

    Args:
        student: layers from shallow to deep, ``[N, ...]``.
        teacher: as many layers of the same samples; widths may differ from the student's.
        edge_weight: weight of the edges.
        transform_weight: weight of the transformations.
        transform: ``"vertex"``, ``"edge"`` or ``"both"``.
        variant: see :func:`edges`.

    Raises:
        ValueError: different numbers of layers or samples, or layers whose widths do not allow the transformation.
    """
    check_choice("variant", variant, ("paper", "code"))
    check_choice("transform", transform, ("vertex", "edge", "both"))
    if len(student) != len(teacher) or not student:
        raise ValueError(
            f"student and teacher: expected as many layers of each, got {len(student)} and {len(teacher)}; graphs are "
            "compared layer by layer"
        )
    for one, other in zip(student, teacher, strict=True):
        check_same_rows(one, other)
    with torch.autocast(student[0].device.type, enabled=False):
        graphs_s = [edges(layer, variant=variant) for layer in student]
        graphs_t = [edges(layer, variant=variant) for layer in teacher]
        loss = edge_weight * _mean([_error(s, t) for s, t in zip(graphs_s, graphs_t, strict=True)])
        if len(student) == 1 or transform_weight == 0:
            return loss
        changes = []
        for i in range(len(student) - 1):
            if transform != "edge":
                of_student = transformation(student[i], student[i + 1], variant=variant)
                changes.append(_error(of_student, transformation(teacher[i], teacher[i + 1], variant=variant)))
            if transform != "vertex":
                of_student = (graphs_s[i + 1] - graphs_s[i]).square()
                changes.append(_error(of_student, (graphs_t[i + 1] - graphs_t[i]).square()))
        return loss + transform_weight * _mean(changes)


@in_full_precision
def _error(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).square().sum() / max(1, student.numel())


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).mean()


def _vector(feature: Feature | Tensor) -> Tensor:
    return Feature.of(feature).full().vector()


def _over_largest(distances: Tensor, variant: Variant) -> Tensor:
    if distances.numel() == 0:
        return distances
    largest = distances.amax()
    if variant == "code":
        largest = largest.detach()
    return distances / largest.masked_fill(largest == 0, 1)


class IRG(Knowledge):
    """Graphs over the samples of a batch: vertices, edges, and how they change from layer to layer.

    Loss: ``vertex_weight mean((z_s - z_t)^2) + edge_weight E + transform_weight L``. The vertices are the logits.
    ``E`` is ``mean_ij (A_s - A_t)_ij^2`` averaged over the layers, with ``A_ij = |f_i - f_j|^2`` of pooled features
    over its largest entry. ``L`` is the same for what changes between consecutive layers, averaged over them: the
    distances ``|f_l(x_i) - f_m(x_i)|^2`` of each sample between two layers of one width, over the largest
    (``"vertex"``), the squared differences ``(A_l - A_m)^2`` of the edges, for any widths (``"edge"``), or the mean of
    both. No ``T^2``. Gradients reach both sides; samples that are all equal have edges 0. On several ranks the graph is
    that of the whole batch.

    ``variant="paper"`` differentiates the largest distance too; ``"code"`` takes it for a constant in the backward
    pass, as the authors' layers do; the loss is the same. The paper sums over the batch where means are taken here, and
    leaves out ``"edge"`` as redundant. The authors' code weighs by .005 half the sum of the transformations' squares
    and half the sum of the edges' over N (Caffe's Euclidean loss divides by the first dimension, 1 and N); its edge
    layer differentiates one end of an edge only, which by symmetry halves the gradient. Per layer, in terms of the
    means here, that is ``edge_weight`` .0025 N in value and .00125 N in gradient, ``transform_weight`` .0025 N. The
    default weights are those of the Knowledge-Distillation-Zoo benchmark, which flattens maps where the authors pool
    them. The paper's one-to-many mode, in which the teacher's last layer guides several layers of a student of another
    kind, is that layer named once for each of them: ``teacher=("fc", "fc"), transform_weight=0``.

    Args:
        vertex_weight: weight of the logits' squared error; 0 for models with different classes.
        edge_weight: weight of the edges.
        transform_weight: weight of the transformations; there is none with a single layer.
        transform: ``"vertex"`` (the authors' code), ``"edge"`` or ``"both"``.
        variant: ``"paper"`` or ``"code"``, see above.
        student: tap or taps ``[N, ...]`` from shallow to deep: maps, tokens, vectors or the logits.
        teacher: as many taps; widths may differ from the student's.
        **features: see :class:`kdx.tap.TapOptions`.

    Paper: Liu et al., Knowledge Distillation via Instance Relationship Graph, CVPR 2019,
    https://openaccess.thecvf.com/content_CVPR_2019/html/Liu_Knowledge_Distillation_via_Instance_Relationship_Graph_CVPR_2019_paper.html;
    code: https://github.com/yufanLIU/IRG.

    Example:
        >>> s = Captured({"logits": torch.tensor([[0.0], [1.0], [2.0]])})
        >>> t = Captured({"logits": torch.tensor([[0.0], [2.0], [2.0]])})
        >>> component = IRG(vertex_weight=0, edge_weight=1)
        >>> round(component(s, t, None).item(), 4)  # edges 1/4, 1, 1/4 against 1, 1, 0
        0.1389
    """

    kind = "relation"

    def __init__(
        self,
        *,
        vertex_weight: float = 0.1,
        edge_weight: float = 5.0,
        transform_weight: float = 5.0,
        transform: Transform = "vertex",
        variant: Variant = "paper",
        student: TapNames = LOGITS,
        teacher: TapNames = LOGITS,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, **features)
        check_choice("transform", transform, ("vertex", "edge", "both"))
        check_choice("variant", variant, ("paper", "code"))
        self.vertex_weight = check_number("vertex_weight", vertex_weight, least=0)
        self.edge_weight = check_number("edge_weight", edge_weight, least=0)
        self.transform_weight = check_number("transform_weight", transform_weight, least=0)
        self.transform, self.variant = transform, variant

    @property
    @override
    def reads_logits(self) -> bool:
        return self.vertex_weight != 0 or super().reads_logits

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> Tensor:
        loss = irg(
            [whole_batch(_vector(layer)) for layer in self.student_features(student)],
            [whole_batch(_vector(layer)) for layer in self.teacher_features(teacher)],
            edge_weight=self.edge_weight,
            transform_weight=self.transform_weight,
            transform=self.transform,
            variant=self.variant,
        )
        if self.vertex_weight != 0:
            check_same_outputs(student.logits, teacher.logits)
            loss = loss + self.vertex_weight * _error(student.logits, teacher.logits)
        return loss

    @override
    def extra_repr(self) -> str:
        weights = f"{self.vertex_weight}, {self.edge_weight}, {self.transform_weight}"
        return f"weights={weights}, transform={self.transform!r}, variant={self.variant!r}"
