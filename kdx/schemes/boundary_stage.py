"""Boundary stage: the first stage of AB, which initialises a student by the teacher's activation boundaries."""

from __future__ import annotations

from typing import Unpack

from torch import nn

from kdx.capture import Output
from kdx.knowledge.ab import AB
from kdx.schemes.layer_stage import LayerStage
from kdx.schemes.weights import Weight
from kdx.tap import TapNames, TapOptions, taps_of
from kdx.teachers import Teacher

__all__ = ["BoundaryStage"]


class BoundaryStage(LayerStage):
    """Initialises a student: its layers learn where the teacher's neurons are active; nothing after them changes.

    Total: ``weight`` times the :class:`kdx.knowledge.AB` loss of the paired layers, without labels. Parameters after
    the last of them get no gradient, and modules that first run after it keep their statistics. The second stage is
    any other scheme on the same student::

        stage = BoundaryStage(student, teacher, student_layers=["bn1", "bn2"], teacher_layers=["bn1", "bn2"])
        kdx.fit(stage, loader, epochs=...)
        kdx.fit(kdx.Offline(student, teacher, knowledge={"kd": kdx.SoftTargets(3.0)}), loader, epochs=...)

    Args:
        student: the model to train.
        teacher: a trained model, or a :class:`kdx.teachers.Teacher`.
        student_layers: taps before the ReLU, from shallow to deep.
        teacher_layers: taps before the ReLU.
        weight: of the loss; 3e-3 as the authors have it for CIFAR-10.
        margin: see :class:`kdx.knowledge.AB`.
        student_output: see :class:`kdx.Taps`.
        teacher_output: the same for the teacher.
        **features: see :class:`kdx.tap.TapOptions`.

    Paper: Heo et al., Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons, AAAI 2019,
    https://arxiv.org/abs/1811.03233.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Teacher,
        *,
        student_layers: TapNames,
        teacher_layers: TapNames,
        weight: Weight = 3e-3,
        margin: float = 1.0,
        student_output: Output = None,
        teacher_output: Output = None,
        **features: Unpack[TapOptions],
    ) -> None:
        boundaries = AB(student=student_layers, teacher=teacher_layers, margin=margin, **features)
        super().__init__(
            student,
            teacher,
            layers=taps_of(student_layers),
            name="ab",
            term=(weight, boundaries),
            student_output=student_output,
            teacher_output=teacher_output,
        )
