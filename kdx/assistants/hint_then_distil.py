"""FitNets in two stages: the student up to its guided layer, then all of it under the recipe's scheme."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from kdx.assistants.base import Assistant
from kdx.features.operands import Variant
from kdx.ref import Ref
from kdx.stage import Stage

__all__ = ["HintThenDistil"]


class HintThenDistil(Assistant):
    """Stage ``hint`` trains the student's first layers on the teacher's; stage ``distilled`` goes on from its weights.

    Stage 1 is :class:`kdx.schemes.HintStage`: no labels, nothing after the guided layer changes, and the
    weights of its last epoch are kept, since accuracy says nothing before the classifier is trained. Stage 2 is the
    recipe's scheme and knowledge on the same student.

    Args:
        student_layer: tap of the student's guided layer; FitNets takes the middle one.
        teacher_layer: tap of the teacher's hint layer.
        train: keys of the recipe's section ``train`` that differ in stage 1, as ``{"epochs": 3}``. Half the squared
            norm of a whole layer is a large loss: a learning rate that suits labels may be too high for it.
        variant: of the hint loss, ``"paper"`` or ``"code"``, see :func:`kdx.knowledge.functional.hint`.

    Paper: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, https://arxiv.org/abs/1412.6550.

    Example:
        >>> plan = HintThenDistil("stage1", "stage2").plan(Ref("resnet"), Ref("convnet"))
        >>> [(stage.name, stage.teachers, stage.start) for stage in plan]
        [('hint', ('teacher',), None), ('distilled', ('teacher',), 'hint')]
    """

    def __init__(
        self,
        student_layer: str,
        teacher_layer: str,
        *,
        train: Mapping[str, Any] | None = None,
        variant: Variant = "paper",
    ) -> None:
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer
        self.train = dict(train or {})
        self.variant = variant

    @override
    def plan(self, teacher: Ref, student: Ref) -> list[Stage]:
        scheme = Ref(
            "hint-stage", student_layer=self.student_layer, teacher_layer=self.teacher_layer, variant=self.variant
        )
        return [
            Stage("hint", "assistant", student, ("teacher",), scheme=scheme, train=self.train, select=False),
            Stage("distilled", "distilled", student, ("teacher",), start="hint"),
        ]
