"""ONE: branches of one network are taught by their own ensemble."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, Unpack, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import LOGITS, Captured, Output, Taps, reading, unwrap
from kdx.features.adapters import BatchNorm
from kdx.features.feature import Feature, read_features
from kdx.features.operands import check_choice
from kdx.knowledge.base import Knowledge
from kdx.knowledge.soft_targets import SoftTargets
from kdx.losses import Mean
from kdx.modes import evaluating
from kdx.schemes.base import (
    KnowledgeTerms,
    Scheme,
    Task,
    components_in,
    naming,
    own_copies,
    setup_components,
)
from kdx.schemes.parts.rest import Rest, modules_before
from kdx.tap import TapName, TapOptions, Told, tap_of
from kdx.tasks.classification import cross_entropy

__all__ = ["ONE", "Gate", "NativeEnsemble"]

Export = Literal["branch", "ensemble"]


class Gate(nn.Module):
    """How much each branch counts in each row: ``softmax(relu(BatchNorm(W pool(F))))``.

    Args:
        feature: an example of the shared feature F.
        branches: how many there are.
    """

    def __init__(self, feature: Feature, branches: int) -> None:
        super().__init__()
        self.layout, self.where = feature.layout, feature.where
        self.linear = nn.Linear(feature.channels, branches)
        self.norm = BatchNorm(branches)

    @override
    def forward(self, feature: Tensor) -> Tensor:
        """``[N, B]``, positive, rows sum to 1."""
        scores: Tensor = self.norm(self.linear(Feature(feature, self.layout, self.where).vector()))
        return scores.relu().softmax(1)


class NativeEnsemble(nn.Module):
    """A network with further branches behind one of its layers, and a gate that weighs them.

    It is an ordinary model: called on inputs it gives the logits of the ensemble, ``sum_b g_b z_b``.

    Args:
        student: the network, the first branch.
        split: name of the layer that all branches share.
        branches: how many, the network's own included.
        names: taps of the outputs that every branch has.
        output: see :class:`kdx.Taps`.
        **features: of the shared layer, see :class:`kdx.tap.TapOptions`.
    """

    def __init__(
        self,
        student: nn.Module,
        split: TapName,
        branches: int,
        *,
        names: tuple[str, ...] = (LOGITS,),
        output: Output = None,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__()
        self.told = Told.of(features, type(self))
        self.student = student
        self.training = student.training
        self.split = split
        self.number = branches
        self.output = reading(output, "ONE")
        self.others = nn.ModuleList()
        self.gate: Gate | None = None
        self._taps = [Taps(student, (*names, split), output=output)]
        self._names = names
        self._asked: list[str] = []

    def tap(self, names: tuple[str, ...]) -> None:
        """Captures layers in every branch, those that are not built yet included."""
        self._asked += names
        for taps in self._taps:
            taps.add(names)

    def build(self, inputs: Any) -> None:
        """Makes the other branches and the gate, from one batch."""
        before = modules_before(self.student, self.split, inputs)
        with evaluating(self.student), torch.no_grad():
            captured = self._taps[0](inputs)
        (feature,) = read_features(captured, (self.split,), told=self.told, who="ONE: the layer before the branches")
        feature.vector()  # says what is missing
        for tap in self._asked:
            for name in self._taps[0].patterns[tap]:
                module = re.split(r"[:\[]", name)[0]
                if any(f"{module}.".startswith(f"{shared}.") for shared in (*before, self.split)):
                    raise ValueError(
                        f"knowledge taps {tap!r}, but {name!r} lies before the split {self.split!r}: all branches "
                        "share it, so that none can teach it to another; tap layers behind the split"
                    )
        for _ in range(self.number - 1):
            rest = Rest(self.student, self.split, before)
            self.others.append(rest)
            self._taps.append(Taps(rest.model, (*self._names, *self._asked), output=self.output))
        self.gate = Gate(feature, self.number)
        for part in (self.others, self.gate):
            part.to(feature.tensor.device, feature.tensor.dtype).train(self.training)

    def run(self, inputs: Any) -> tuple[list[Captured], Captured]:
        """Captures every branch, and the ensemble: each tap's mean under the gate."""
        if self.gate is None:
            raise RuntimeError("the branches are built from shapes: call scheme.setup(batch) once, as kdx.fit does")
        captured = [self._taps[0](inputs)]
        feature = captured[0][self.split]
        for rest, taps in zip(self.others, self._taps[1:], strict=True):
            assert isinstance(rest, Rest)  # built above
            rest.enter(feature)
            captured.append(taps(feature))
            rest.enter(None)
        shares = self.gate(feature)  # [N, B]
        values = {}
        for name in captured[-1]:
            stacked = torch.stack([each[name] for each in captured], 1)  # [N, B, ...]
            values[name] = (shares.view(*shares.shape, *[1] * (stacked.dim() - 2)) * stacked).sum(1)
        return captured, captured[-1].having(values)

    @override
    def forward(self, inputs: Any) -> Tensor:
        return self.run(inputs)[1].logits


class ONE(Scheme):
    """On-the-fly native ensemble: B branches share the layers up to ``split``; their gated ensemble teaches each.

    Total: ``w [sum_b task(z_b, y) + task(z_e, y)] + sum_b sum_k w_k knowledge_k(branch b, stop_gradient(ensemble))``
    with ``z_e = sum_b g_b z_b`` and the gate g a linear layer with BatchNorm, ReLU and softmax on the shared feature.
    By default the knowledge is soft targets at T = 3 with weight 1. The ensemble learns from the labels alone, no
    gradient of the soft targets reaches it. The paper's coefficient of the soft targets is 1; the authors' code ramps
    it up over the first 80 of 300 epochs, for which ``warmup`` is the nearest schedule of a weight.

    The student is the first branch, unchanged in structure, and what is exported: the other branches and the gate are
    built at ``setup``, saved and trained with the scheme and gone at export. ``export="ensemble"`` keeps them all, as
    :class:`NativeEnsemble`. Components that read layers compare with the same layer's mean under the gate; layers
    behind the split can be read.

    Args:
        student: a network whose layers up to ``split`` run one after the other (any CNN in stages).
        split: name of the last layer that branches share, as ``stage2``. In the paper all but the last stage.
        branches: B >= 2; 3 in the paper.
        task: see :class:`kdx.Scheme`.
        knowledge: see :class:`kdx.Scheme`; replaces the soft targets. Every branch has its own copy of a component.
        export: ``"branch"`` or ``"ensemble"``.
        student_output: see :class:`kdx.Taps`.
        **features: of the layer ``split``, see :class:`kdx.tap.TapOptions`; one of tokens needs ``class_token``.

    Raises:
        ValueError: fewer than two branches; at ``setup``, a tap before the split.
        CaptureError: the split or a tap names no layer.

    Paper: Lan, Zhu, Gong, Knowledge Distillation by On-the-Fly Native Ensemble, NeurIPS 2018,
    https://arxiv.org/abs/1806.04606; code: https://github.com/Lan1991Xu/ONE_NeurIPS2018.

    Example:
        >>> from kdx.models import ConvNet
        >>> scheme = ONE(ConvNet(width=4, stages=3), split="stage2", branches=2)
        >>> batch = torch.randn(8, 1, 28, 28), torch.arange(8) % 3
        >>> scheme.setup(batch)
        >>> list(scheme(batch).terms)
        ['branch0/task', 'branch1/task', 'ensemble/task', 'branch0/kd', 'branch1/kd']
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        split: TapName,
        branches: int = 3,
        task: Task = cross_entropy,
        knowledge: KnowledgeTerms | None = None,
        export: Export = "branch",
        student_output: Output = None,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(task=task, knowledge=knowledge or {"kd": SoftTargets(3.0)})
        if branches < 2:
            raise ValueError(f"branches must be 2 or more, the student's own included; got {branches}")
        check_choice("export", export, get_args(Export))
        self.export: Export = export
        self.ensemble = NativeEnsemble(
            unwrap(student), tap_of(split), branches, names=self.task_taps, output=student_output, **features
        )
        self.knowledge = nn.ModuleDict({f"branch{b}": own_copies(self.components) for b in range(branches)})
        for name, component in self._lesson(0).items():
            with naming(name):
                self.ensemble.tap((*component.student_taps, *component.teacher_taps))

    @property
    @override
    def students(self) -> dict[str, nn.Module]:
        return {"student": self.ensemble.student} if self.export == "branch" else {"ensemble": self.ensemble}

    @override
    def output_of(self, student: str) -> Callable[[Any], Tensor] | None:
        return self.ensemble.output if student == "student" else None

    @property
    @override
    def ready(self) -> bool:
        return self.ensemble.gate is not None and super().ready

    @override
    def setup(self, batch: Batch | Any) -> None:
        if self.ready:
            return
        batch = Batch.of(batch)
        if self.ensemble.gate is None:
            self.ensemble.build(batch.inputs)
        with evaluating(self.ensemble), torch.no_grad():
            captured, teacher = self.ensemble.run(batch.inputs)
        for b, student in enumerate(captured):
            setup_components(self._lesson(b), lambda s=student: s, lambda: teacher)  # type: ignore[misc]

    @override
    def terms(self, batch: Batch) -> dict[str, Mean]:
        captured, ensemble = self.ensemble.run(batch.inputs)
        terms: dict[str, Mean] = {}
        for name, each in {**{f"branch{b}": each for b, each in enumerate(captured)}, "ensemble": ensemble}.items():
            terms |= self.task_terms(each, batch, of=name)
        for b, student in enumerate(captured):
            components = self._lesson(b)
            found = self.knowledge_terms(components, student, ensemble.detach(), batch)
            terms |= {f"branch{b}/{name}": term for name, term in found.items()}
        return terms

    def _lesson(self, branch: int) -> dict[str, Knowledge]:
        return components_in(self.knowledge[f"branch{branch}"])
