"""Hint stage: the first stage of FitNets, which trains a student up to its guided layer."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Output, unwrap
from kdx.features.operands import Variant
from kdx.knowledge.hint import Hint
from kdx.losses import Mean
from kdx.modes import evaluating
from kdx.schemes.offline import Offline
from kdx.tap import TapName, TapOptions, tap_of
from kdx.teachers import Teacher

__all__ = ["HintStage"]


class HintStage(Offline):
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
        student_layer = tap_of(student_layer)
        super().__init__(
            student,
            teacher,
            task=None,
            knowledge={"hint": Hint(student=student_layer, teacher=teacher_layer, variant=variant, **features)},
            student_output=student_output,
            teacher_output=teacher_output,
        )
        self.student_layer = student_layer
        self._later: list[nn.Module] = []

    @override
    def setup(self, batch: Batch | Any) -> None:
        if self.ready:
            return
        batch = Batch.of(batch)
        super().setup(batch)
        with evaluating(self.student), torch.enable_grad():
            self._later, feature = self._run_in_order(batch)
            parameters = dict(self.named_parameters(remove_duplicate=True))
            used = [p for p in parameters.values() if p.requires_grad]
            reached = torch.autograd.grad(feature.sum(), used, allow_unused=True)
        trained = {id(p) for p, gradient in zip(used, reached, strict=True) if gradient is not None}
        # data parallelism would wait for gradients that never come
        self._ddp_params_and_buffers_to_ignore = [
            name
            for name, parameter in parameters.items()
            if name.startswith("student.") and id(parameter) not in trained
        ]

    def _run_in_order(self, batch: Batch) -> tuple[list[nn.Module], Tensor]:
        """Modules that first run after the guided layer is done, and the guided feature with its graph."""
        guided = unwrap(self.student).get_submodule(self.student_layer.partition(":")[0].partition("[")[0])
        done, seen, later = False, set[nn.Module](), []

        def begins(module: nn.Module, _: Any) -> None:
            if module not in seen:
                seen.add(module)
                if done:
                    later.append(module)

        def ends(*_: Any) -> None:
            nonlocal done
            done = True

        enters = self.student_layer.endswith(":input")  # then the guided layer itself comes after what it is fed
        handles = [guided.register_forward_pre_hook(ends) if enters else guided.register_forward_hook(ends)]
        handles += [module.register_forward_pre_hook(begins) for module in self.student.modules()]
        try:
            feature = self.taps(batch.inputs)[self.student_layer]
        finally:
            for handle in handles:
                handle.remove()
        return later, feature

    @override
    def terms(self, batch: Batch) -> dict[str, Mean]:
        training = [module for module in self._later if module.training]
        for module in training:
            module.training = False
        try:
            return super().terms(batch)
        finally:
            for module in training:
                module.training = True
