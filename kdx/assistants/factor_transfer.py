"""Factor transfer in two stages: the teacher's paraphraser, then the student under the recipe's scheme."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from kdx.assistants.base import Assistant
from kdx.assistants.channels import teacher_channels
from kdx.features.operands import Variant
from kdx.ref import Ref
from kdx.stage import FinishedStages, Produced, Stage, Structure

__all__ = ["FactorTransfer", "WithParaphraser"]


class FactorTransfer(Assistant):
    """Stage ``paraphraser`` adds one to the teacher and trains it; stage ``distilled`` is taught by the two.

    Stage 1 is :class:`kdx.schemes.Paraphrase` on the trained teacher, which stays as it is. Stage 2 is the recipe's
    scheme on the student, with the knowledge ``ft`` among the recipe's own: the teacher's tap ``paraphraser`` is the
    factor, its other taps are under ``teacher.``, and its logits are those that they were.

    Args:
        layer: tap of the teacher's layer; the authors take the last one before pooling.
        rate: share of its channels that the factor has; 0.5 as the authors have it.
        train: keys of the recipe's section ``train`` that differ in stage 1, as ``{"epochs": 3}``; the authors train
            the paraphraser for few epochs.
        variant: of the reconstruction, ``"paper"`` or ``"code"``.

    Paper: Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018,
    https://arxiv.org/abs/1802.04977.

    Example:
        >>> plan = FactorTransfer("stage4").plan(Ref("resnet"), Ref("convnet"))
        >>> [(stage.name, stage.teachers, stage.needs) for stage in plan]
        [('paraphraser', ('teacher',), ('teacher',)), ('distilled', ('paraphraser',), ('paraphraser',))]
    """

    def __init__(
        self,
        layer: str,
        *,
        rate: float = 0.5,
        train: Mapping[str, Any] | None = None,
        variant: Variant = "code",
    ) -> None:
        self.layer = layer
        self.rate = rate
        self.train = dict(train or {})
        self.variant = variant

    @override
    def plan(self, teacher: Ref, student: Ref) -> list[Stage]:
        scheme = Ref("paraphrase", variant=self.variant)
        both = WithParaphraser(self.layer, self.rate)
        return [
            Stage("paraphraser", "assistant", both, ("teacher",), scheme=scheme, train=self.train, select=False),
            Stage("distilled", "distilled", student, ("paraphraser",)),
        ]


@dataclass(frozen=True, slots=True)
class WithParaphraser(Structure):
    """The trained model of stage ``teacher`` and a new paraphraser of one of its layers.

    Args:
        layer: tap of the layer.
        rate: share of its channels that the factor has.
    """

    layer: str
    rate: float

    @property
    @override
    def needs(self) -> tuple[str, ...]:
        return ("teacher",)

    @override
    def produce(self, finished: FinishedStages) -> Produced:
        teacher = finished.model("teacher")
        channels = teacher_channels(teacher, self.layer, finished.example, "factor-transfer")
        ref = Ref("paraphrased", teacher=finished.ref("teacher"), layer=self.layer, channels=channels, rate=self.rate)
        weights = finished.build(ref).state_dict()
        weights |= {f"teacher.{name}": value for name, value in teacher.state_dict().items()}
        return Produced(ref, weights)
