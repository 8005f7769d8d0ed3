"""QKD: a quantised student studies alone, then with its teacher, then is tutored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from kdx import Assistant, Ref, Stage

__all__ = ["QKD"]


class QKD(Assistant):
    """Quantisation-aware distillation in three phases, each a stage that goes on from the one before.

    1. ``self-studying``: the quantised student on the labels alone, since distilling at once may hurt a net of few
       bits.
    2. ``co-studying``: student and teacher learn from the labels and from each other, the teacher beginning as trained
       (:class:`kdx_quant.co_studying.CoStudying`).
    3. ``distilled``: the recipe's scheme, taught by the teacher that came of phase 2, which no longer changes.

    The recipe's student is a quantised one, ``student: {model: {name: derived, how: {name: quantise, to: int4}}}``, and
    its knowledge compares logits. To compare with ``direct``, distilled at once, let the epochs of the phases add up to
    those of the section ``train``.

    Args:
        self_studying: keys of the section ``train`` that differ in phase 1, as ``{"epochs": 2}``.
        co_studying: the same for phase 2.
        tutoring: the same for phase 3.

    Paper: Kim et al., QKD: Quantization-aware Knowledge Distillation, 2019, https://arxiv.org/abs/1911.12491. There the
    student is quantised by learned intervals; here as its derivation says.

    Example:
        >>> plan = QKD(self_studying={"epochs": 2}).plan(Ref("resnet"), Ref("convnet"))
        >>> [(stage.name, stage.teachers, stage.start) for stage in plan]
        [('self-studying', (), None), ('co-studying', ('teacher',), 'self-studying'), \
('distilled', ('co-studying:teacher',), 'co-studying')]
    """

    def __init__(
        self,
        *,
        self_studying: Mapping[str, Any] | None = None,
        co_studying: Mapping[str, Any] | None = None,
        tutoring: Mapping[str, Any] | None = None,
    ) -> None:
        self.self_studying = dict(self_studying or {})
        self.co_studying = dict(co_studying or {})
        self.tutoring = dict(tutoring or {})

    @override
    def plan(self, teacher: Ref, student: Ref) -> list[Stage]:
        return [
            Stage(
                "self-studying",
                "assistant",
                student,
                scheme=Ref("supervised"),
                train=self.self_studying,
                rows="labelled",
            ),
            Stage(
                "co-studying",
                "assistant",
                student,
                ("teacher",),
                start="self-studying",
                starts={"teacher": "teacher"},
                scheme=Ref("co-studying"),
                train=self.co_studying,
            ),
            Stage(
                "distilled", "distilled", student, ("co-studying:teacher",), start="co-studying", train=self.tutoring
            ),
        ]
