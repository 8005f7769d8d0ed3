"""AB in two stages: the student initialised by activation boundaries, then trained under the recipe's scheme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from kdx.assistants.base import Assistant
from kdx.ref import Ref
from kdx.stage import Stage

__all__ = ["BoundariesThenDistil"]


class BoundariesThenDistil(Assistant):
    """Stage ``boundaries`` initialises the student by the teacher's activation boundaries; ``distilled`` goes on.

    Stage 1 is :class:`kdx.schemes.BoundaryStage`: no labels, nothing after the last guided layer changes, and the
    weights of its last epoch are kept, since accuracy says nothing before the classifier is trained. Stage 2 is the
    recipe's scheme and knowledge on the same student; the paper takes soft targets at a temperature of 3, or the labels
    alone.

    Args:
        student_layers: taps before the student's ReLUs, from shallow to deep.
        teacher_layers: taps before the teacher's, as many.
        train: keys of the recipe's section ``train`` that differ in stage 1, as ``{"epochs": 3}``.
        weight: of the loss, see :class:`kdx.schemes.BoundaryStage`.
        margin: see :class:`kdx.knowledge.AB`.

    Paper: Heo et al., Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons, AAAI 2019,
    https://arxiv.org/abs/1811.03233.

    Example:
        >>> plan = BoundariesThenDistil(["stage1.norm1"], ["stage1.norm1"]).plan(Ref("resnet"), Ref("convnet"))
        >>> [(stage.name, stage.teachers, stage.start) for stage in plan]
        [('boundaries', ('teacher',), None), ('distilled', ('teacher',), 'boundaries')]
    """

    def __init__(
        self,
        student_layers: Sequence[str],
        teacher_layers: Sequence[str],
        *,
        train: Mapping[str, Any] | None = None,
        weight: float = 3e-3,
        margin: float = 1.0,
    ) -> None:
        self.student_layers = [student_layers] if isinstance(student_layers, str) else list(student_layers)
        self.teacher_layers = [teacher_layers] if isinstance(teacher_layers, str) else list(teacher_layers)
        self.train = dict(train or {})
        self.weight = weight
        self.margin = margin

    @override
    def plan(self, teacher: Ref, student: Ref) -> list[Stage]:
        scheme = Ref(
            "boundary-stage",
            student_layers=self.student_layers,
            teacher_layers=self.teacher_layers,
            weight=self.weight,
            margin=self.margin,
        )
        return [
            Stage("boundaries", "assistant", student, ("teacher",), scheme=scheme, train=self.train, select=False),
            Stage("distilled", "distilled", student, ("teacher",), start="boundaries"),
        ]
