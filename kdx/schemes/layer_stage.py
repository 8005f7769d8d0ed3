"""The base of first stages that train a student up to its guided layers and nothing after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Output, unwrap
from kdx.knowledge.base import Knowledge
from kdx.losses import Mean
from kdx.modes import evaluating
from kdx.schemes.offline import Offline
from kdx.schemes.weights import Weight
from kdx.tap import TapName, tap_of
from kdx.teachers import Teacher

__all__ = ["LayerStage"]


class LayerStage(Offline):
    """Trains the layers of a student up to the last of some guided ones on one term; nothing after them changes.

    There is no task loss, so parameters after the guided layers get no gradient and no optimizer of torch moves them,
    weight decay included. Modules that first run after the last guided layer do so in evaluation mode, so that their
    BatchNorm statistics stay too. The next stage is any other scheme on the same student.

    Args:
        student: the model to train.
        teacher: a trained model, or a :class:`kdx.teachers.Teacher`.
        layers: taps of the guided layers that the term reads in the student.
        name: of the term.
        term: its weight and the component.
        student_output: see :class:`kdx.Taps`.
        teacher_output: the same for the teacher.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Teacher,
        *,
        layers: Sequence[TapName],
        name: str,
        term: tuple[Weight, Knowledge],
        student_output: Output = None,
        teacher_output: Output = None,
    ) -> None:
        super().__init__(
            student,
            teacher,
            task=None,
            knowledge={name: term},
            student_output=student_output,
            teacher_output=teacher_output,
        )
        self.layers = tuple(tap_of(layer) for layer in layers)
        self._later: list[nn.Module] = []

    @override
    def setup(self, batch: Batch | Any) -> None:
        if self.ready:
            return
        batch = Batch.of(batch)
        super().setup(batch)
        with evaluating(self.student), torch.enable_grad():
            self._later, features = self._run_in_order(batch)
            parameters = dict(self.named_parameters(remove_duplicate=True))
            used = [p for p in parameters.values() if p.requires_grad]
            total = torch.stack([feature.sum() for feature in features]).sum()
            reached = torch.autograd.grad(total, used, allow_unused=True)
        trained = {id(p) for p, gradient in zip(used, reached, strict=True) if gradient is not None}
        # data parallelism would wait for gradients that never come
        self._ddp_params_and_buffers_to_ignore = [
            name
            for name, parameter in parameters.items()
            if name.startswith("student.") and id(parameter) not in trained
        ]

    def _run_in_order(self, batch: Batch) -> tuple[list[nn.Module], list[Tensor]]:
        """Modules that first run after the guided layers are done, and the guided features with their graph."""
        names = [name for tap in self.layers for name in self.taps.patterns[tap]]
        waiting, seen, later = set(names), set[nn.Module](), []

        def begins(module: nn.Module, _: Any) -> None:
            if module not in seen:
                seen.add(module)
                if not waiting:
                    later.append(module)

        handles = []
        for name in names:
            guided = unwrap(self.student).get_submodule(name.partition(":")[0].partition("[")[0])

            def ends(*_: Any, name: str = name) -> None:
                waiting.discard(name)

            enters = name.endswith(":input")  # then the guided layer itself comes after what it is fed
            handles.append(guided.register_forward_pre_hook(ends) if enters else guided.register_forward_hook(ends))
        handles += [module.register_forward_pre_hook(begins) for module in self.student.modules()]
        try:
            captured = self.taps(batch.inputs)
        finally:
            for handle in handles:
                handle.remove()
        return later, [captured[name] for name in names]

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
