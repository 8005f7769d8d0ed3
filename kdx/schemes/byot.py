"""BYOT: the deepest stage of a network teaches the shallower ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Captured, Output
from kdx.features.operands import Variant, check_choice
from kdx.knowledge.base import Knowledge
from kdx.knowledge.hint import hint
from kdx.knowledge.soft_targets import SoftTargets
from kdx.losses import Mean
from kdx.ranges import check_number
from kdx.schemes.base import KnowledgeTerms, Task
from kdx.schemes.parts.branches import Branch
from kdx.schemes.parts.layers import SelfLayers
from kdx.tap import TapName, TapOptions
from kdx.tasks.classification import cross_entropy

__all__ = ["BYOT", "BranchDistance"]


class BranchDistance(Knowledge):
    """``||F_i - F_C||^2``, summed over a sample's elements, averaged over the batch.

    Args:
        student: ``"feature"`` or ``"embedding"``.
        teacher: the same.
        masked: leaves out the elements that are positive on neither side.

    Example:
        >>> import torch
        >>> s, t = Captured({"feature": torch.zeros(3, 2)}), Captured({"feature": torch.ones(3, 2)})
        >>> BranchDistance()(s, t, None).item()
        2.0
    """

    kind = "feature"

    def __init__(self, student: str = "feature", teacher: str = "feature", *, masked: bool = False) -> None:
        super().__init__(student=student, teacher=teacher)
        self.masked = masked

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> Tensor:
        s, t = student[self.student_taps[0]], teacher[self.teacher_taps[0]]
        if self.masked:
            s = torch.where((s > 0) | (t > 0), s, t)
        return 2 * hint(s, t, variant="paper")


class BYOT(SelfLayers):
    """Be Your Own Teacher: every shallower stage gets a branch that learns from the labels and from the deepest stage.

    Total, with C the deepest classifier (the network's own) and branches i on the stages before it:
    ``w CE(z_C, y) + sum_i [(1 - alpha) w CE(z_i, y) + alpha T^2 KL(sg p_C || p_i) + lambda ||F_i - sg F_C||^2]``, w the
    task's weight, T = 3, alpha = .1, lambda = 1e-6. The squared distance is summed over a sample's elements and
    averaged over the batch. The values are those of a re-implementation, which sums over its batch of 128 too; that
    would depend on how a batch is split. Its term weighs as ``feature_weight=1.28e-4`` does here. What
    the authors published is the journal's method, which differs: alpha .3 without T^2, the norm of the whole batch's
    difference after a learned linear layer with weight .03, and branches with attention.
    The gradient of a branch reaches the
    stages up to its own, none reaches the deepest stage as the teacher.

    Branches (:class:`kdx.schemes.parts.branches.Branch`) are built from the shapes at ``setup``, trained and saved with
    the scheme and no part of the student, which is exported as it was given.

    Args:
        student: the model to train: a CNN in stages or a transformer encoder that gives logits ``[N, C]``.
        task: see :class:`kdx.Scheme`.
        knowledge: replaces the last two terms, for every branch with its own copy and the weights given. Components
            read ``logits``, ``feature`` (of the deepest stage's shape) and ``embedding`` (the feature pooled to
            ``[N, D]``) in a branch and in the deepest stage.
        alpha: weight of the soft targets, and what is taken from a branch's task loss.
        temperature: T of the soft targets.
        feature_weight: lambda; 0 leaves the term out.
        stages: taps from shallow to deep, the last one is F_C; None finds them.
        variant: ``"paper"``, or ``"code"``, that re-implementation: ``(1 - alpha)`` on the deepest cross-entropy too,
            and F pooled to vectors, of which it leaves out the elements that are positive on neither side.
        student_output: see :class:`kdx.Taps`.
        **features: of the stages, see :class:`kdx.tap.TapOptions`; one of tokens needs ``class_token``.

    Raises:
        ValueError: no stages were found, or the logits are not ``[N, C]``.

    Paper: Zhang et al., Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
    Distillation, ICCV 2019, https://arxiv.org/abs/1905.08094; re-implementation:
    https://github.com/luanyunteng/pytorch-be-your-own-teacher; of the journal's method, by the authors:
    https://github.com/ArchipLab-LinfengZhang/pytorch-self-distillation-final.

    Example:
        >>> import torch
        >>> from kdx.models import ConvNet
        >>> scheme = BYOT(ConvNet(width=4, stages=3))
        >>> batch = torch.randn(4, 1, 28, 28), torch.zeros(4, dtype=torch.int64)
        >>> scheme.setup(batch)
        >>> scheme.stages, list(scheme(batch).terms)
        (('stage1', 'stage3'), ['task', 'branch0/task', 'branch0/kd', 'branch0/feature'])
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        task: Task = cross_entropy,
        knowledge: KnowledgeTerms | None = None,
        alpha: float = 0.1,
        temperature: float = 3.0,
        feature_weight: float = 1e-6,
        stages: Sequence[TapName] | None = None,
        variant: Variant = "paper",
        student_output: Output = None,
        **features: Unpack[TapOptions],
    ) -> None:
        alpha = check_number("alpha", alpha, least=0, most=1)
        check_choice("variant", variant, get_args(Variant))
        compared = "feature" if variant == "paper" else "embedding"
        weighted: dict[str, tuple[float, Knowledge]] = {
            "kd": (alpha, SoftTargets(temperature)),
            "feature": (feature_weight, BranchDistance(compared, compared, masked=variant == "code")),
        }
        default = {name: term for name, term in weighted.items() if term[0] != 0}
        super().__init__(
            student,
            task=task,
            knowledge=knowledge or default,
            names=("logits", "feature", "embedding"),
            stages=stages,
            student_output=student_output,
            **features,
        )
        self.alpha = float(alpha)
        self.variant: Variant = variant
        self.branches = nn.ModuleList()

    @override
    def build(self, captured: Captured) -> None:
        if captured.logits.dim() != 2:
            raise ValueError(
                f"the student gives logits of shape {list(captured.logits.shape)}; branches of byot classify whole "
                "samples, [N, C]"
            )
        *shallower, deepest = self.stage_features(captured)
        classes = captured.logits.shape[1]
        self.branches.extend(Branch(shallow, deepest, classes) for shallow in shallower)
        self.branches.train(self.training)

    @override
    def lessons(self, captured: Captured) -> list[tuple[Captured, Captured]]:
        *shallower, last = self.stage_features(captured)
        deepest = last.having(last.tensor.detach())
        teacher = Captured(
            {"feature": deepest.tensor, "embedding": deepest.vector(), "logits": captured.logits.detach()},
            layouts={"feature": deepest.given},
        )
        return [(branch(shallow, deepest), teacher) for branch, shallow in zip(self.branches, shallower, strict=True)]

    @override
    def terms(self, batch: Batch) -> dict[str, Mean]:
        captured = self.captured(batch)
        own = 1.0 if self.variant == "paper" else 1 - self.alpha
        terms = self.task_terms(captured, batch, weight=own * self.task_weight)
        for k, (branch, teacher) in enumerate(self.lessons(captured)):
            terms |= self.task_terms(branch, batch, of=f"branch{k}", weight=(1 - self.alpha) * self.task_weight)
            found = self.knowledge_terms(self.lesson_components(k), branch, teacher, batch)
            terms |= {f"branch{k}/{name}": term for name, term in found.items()}
        return terms
