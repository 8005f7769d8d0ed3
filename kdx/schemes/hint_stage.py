"""Hint stage: the first stage of FitNets, which trains a student up to its guided layer."""

from __future__ import annotations

from typing import Unpack

from torch import nn

from kdx.capture import Output
from kdx.features.operands import Variant
from kdx.knowledge.hint import Hint
from kdx.schemes.layer_stage import LayerStage
from kdx.tap import TapName, TapOptions
from kdx.teachers import Teacher

__all__ = ["HintStage"]


class HintStage(LayerStage):
    """Trains the layers of a student up to a guided one on the hint alone; nothing after it changes.

    Total: the :class:`kdx.knowledge.Hint` loss of one pair of layers. There is no task loss, so parameters after
    the guided layer get no gradient and no optimizer of torch moves them, weight decay included. Modules that first run
    after it do so in evaluation mode, so that their BatchNorm statistics stay too. The second stage is any other
    scheme on the same student::

        kdx.fit(HintStage(student, teacher, student_layer="layer2", teacher_layer="layer2"), loader, epochs=...)
        kdx.fit(kdx.Offline(student, teacher, knowledge={"kd": kdx.SoftTargets(4.0)}), loader, epochs=...)

    Args:
        student: the model to train.
        teacher: a trained model, or a :class:`kdx.teachers.Teacher`.
        student_layer: tap of the guided layer; FitNets takes the middle one.
        teacher_layer: tap of the hint layer.
        variant: of the loss, see :func:`kdx.knowledge.functional.hint`; the paper's half squared norm by default.
        student_output: see :class:`kdx.Taps`.
        teacher_output: the same for the teacher.
        **features: see :class:`kdx.tap.TapOptions`.

    Paper: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, https://arxiv.org/abs/1412.6550.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Teacher,
        *,
        student_layer: TapName,
        teacher_layer: TapName,
        variant: Variant = "paper",
        student_output: Output = None,
        teacher_output: Output = None,
        **features: Unpack[TapOptions],
    ) -> None:
        hint = Hint(student=student_layer, teacher=teacher_layer, variant=variant, **features)
        super().__init__(
            student,
            teacher,
            layers=[student_layer],
            name="hint",
            term=(1.0, hint),
            student_output=student_output,
            teacher_output=teacher_output,
        )
