"""Residual distillation on feature maps: a student mimics the teacher's map, an assistant learns what it misses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import LOGITS, Output, Taps
from kdx.features.adapters import match_maps
from kdx.features.feature import Feature, read_features
from kdx.features.operands import check_same_shape
from kdx.losses import LossTerm
from kdx.models.feature_sum import FeatureSum
from kdx.modes import evaluating
from kdx.ranges import check_number
from kdx.schemes.apart import check_apart
from kdx.schemes.base import KnowledgeTerms, Scheme, Task, setup_components, tap_components
from kdx.tap import TapName, tap_of
from kdx.tasks.classification import cross_entropy
from kdx.teachers import Teacher, as_teacher

__all__ = ["ResidualFeatures"]


class ResidualFeatures(Scheme):
    """Trains a student on a teacher's feature map and an assistant on what the student's misses; their maps add up.

    Total: ``w_task * task(z, y) + mimic * mean (S - F_t)^2 + residual * mean (A - (F_t - sg S))^2 + knowledge``, means
    over all elements, with the teacher's map ``F_t``, the student's ``S`` and the assistant's ``A`` in its channels,
    and the logits z that the classifier makes of ``S + A``. The gradient of the residual reaches the assistant alone:
    the student mimics the teacher as well as it can, and is not drawn to what the assistant could do better. The larger
    map is pooled to the smaller.

    From the paper are the two errors, on feature maps, and the sum at inference. Ours are the 1x1 convolutions to the
    teacher's channels, which are parts of the exported model, the weights and that both are trained at once.

    Args:
        student: a :class:`kdx.models.FeatureSum` with the channels of the teacher's layer.
        teacher: a trained model, or a :class:`kdx.teachers.Teacher`.
        teacher_layer: tap of the map that they learn; the last one before pooling.
        task: see :class:`kdx.Scheme`; on the sum.
        knowledge: see :class:`kdx.Scheme`; between the sum and the teacher, as soft targets of their logits.
        mimic: weight of the student's error, at least 0.
        residual: weight of the assistant's, above 0.
        teacher_output: see :class:`kdx.Taps`.

    Raises:
        TypeError: another model.
        ValueError: in training, maps with other channels than the teacher's.

    Paper: Gao et al., Residual Knowledge Distillation, 2020, https://arxiv.org/abs/2002.09168.

    Example:
        >>> from kdx import Ref
        >>> from kdx.models import ConvNet
        >>> small = Ref("convnet", width=4, stages=2)
        >>> pair = FeatureSum(small, Ref("convnet", width=2, stages=2), "stage2", channels=16)
        >>> residual = ResidualFeatures(pair, ConvNet(8, stages=2), teacher_layer="stage2")
        >>> sorted(residual((torch.ones(4, 1, 28, 28), torch.zeros(4, dtype=torch.int64))).terms)
        ['mimic', 'residual', 'task']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Teacher,
        *,
        teacher_layer: TapName,
        task: Task = cross_entropy,
        knowledge: KnowledgeTerms | None = None,
        mimic: float = 1.0,
        residual: float = 1.0,
        teacher_output: Output = None,
    ) -> None:
        super().__init__(task=task, knowledge=knowledge)
        if not isinstance(student, FeatureSum):
            raise TypeError(
                f"student: expected a kdx.models.FeatureSum, a student and an assistant whose maps are added up, got "
                f"{type(student).__name__}"
            )
        self.pair = student
        self.teacher = as_teacher(teacher, teacher_output)
        self.teacher.bind(self.responses)
        self.teacher_layer = tap_of(teacher_layer)
        self.teacher.tap((self.teacher_layer,))
        self.mimic = check_number("mimic", mimic, least=0)
        self.residual = check_number("residual", residual, above=0)
        self.taps = Taps(student, ("student_map", "assistant_map", LOGITS))
        check_apart(self)
        tap_components(self.components, self.taps, self.teacher)

    @property
    @override
    def students(self) -> dict[str, nn.Module]:
        return {"student": self.pair}

    @override
    def output_of(self, student: str) -> Callable[[Any], Tensor] | None:
        return self.taps.output

    @override
    def setup(self, batch: Batch | Any) -> None:
        batch = Batch.of(batch)
        with evaluating(self.pair):
            setup_components(self.components, lambda: self.taps(batch.inputs), lambda: self.teacher(batch))

    @override
    def terms(self, batch: Batch) -> dict[str, LossTerm]:
        captured = self.taps(batch.inputs)
        terms: dict[str, LossTerm] = {**self.task_terms(captured, batch)}
        given = self.teacher(batch)
        (taught,) = read_features(given, (self.teacher_layer,), who="residual-features: the teacher's feature")
        with torch.autocast(taught.tensor.device.type, enabled=False):
            s, a = (self._apart(captured[f"{part}_map"], taught) for part in ("student", "assistant"))
            if self.mimic:
                terms["mimic"] = self.mimic * F.mse_loss(s[0], s[1])
            missed = s[1] - s[0].detach()  # [N, C, H, W]
            terms["residual"] = self.residual * F.mse_loss(a[0], missed)
        return terms | self.knowledge_terms(self.components, captured, given, batch)

    def _apart(self, found: Tensor, taught: Feature) -> tuple[Tensor, Tensor]:
        """A map of the pair and the teacher's, of one size."""
        own, target = match_maps(Feature(found, where="the pair's map").full(), taught.full())
        if own.shape[1] != target.shape[1]:
            raise ValueError(
                f"{taught.where} has {target.shape[1]} channels and the pair's maps have {own.shape[1]}; build the "
                f"pair with channels={target.shape[1]}"
            )
        check_same_shape(own, target)
        return own, target
