"""Born-again networks: generations of one model, each taught by the one before."""

from __future__ import annotations

from typing_extensions import override

from kdx.assistants.base import Assistant
from kdx.ref import Ref
from kdx.stage import Stage

__all__ = ["BornAgain"]


class BornAgain(Assistant):
    """Generations of the student, each trained from scratch under the recipe's scheme and taught by the one before.

    Generation 0 is the student trained on its labels alone (stage ``alone``); ``generation1`` .. follow, and the last
    one is ``distilled``. Each starts from weights of its own (its number is added to the recipe's seed). The recipe has
    no section ``teacher``. What a generation learns is the recipe's: scheme ``offline`` with knowledge ``soft-targets``
    at ``temperature: 1.0``. With a task weight of 0 that is the paper's BAN (the teacher's probabilities alone, the
    better one on its images), with 1 its BAN+L (labels as well, which its language models need).

    With one generation this is the self-training of teacher-free distillation, Tf-KD_self (Yuan et al., CVPR 2020,
    https://arxiv.org/abs/1909.11723), for which the labels keep a weight: its other form is the scheme ``tf-kd``.

    Not offered are the two ablations of the paper, which replace the teacher's probabilities by their maximum as a
    weight of the label's cross-entropy (CWTM) or permute all others (DKPP), and its ensembles of generations.

    Args:
        generations: how many follow generation 0, >= 1. The paper's gains saturate after a few; it stops at three.

    Paper: Furlanello et al., Born Again Neural Networks, ICML 2018, https://arxiv.org/abs/1805.04770.

    Example:
        >>> net = Ref("resnet")
        >>> [(stage.name, stage.teachers, stage.seed) for stage in BornAgain(generations=2).plan(net, net)]
        [('generation1', ('alone',), 1), ('distilled', ('generation1',), 2)]
    """

    has_teacher = False

    def __init__(self, *, generations: int = 2) -> None:
        if generations < 1:
            raise ValueError(f"generations must be >= 1, got {generations}")
        self.generations = generations
        self.links = generations

    @override
    def plan(self, teacher: Ref, student: Ref) -> list[Stage]:
        names = ["alone", *(f"generation{k}" for k in range(1, self.generations)), "distilled"]
        roles = ["assistant"] * (self.generations - 1) + ["distilled"]
        return [
            Stage(name, role, student, (names[k],), seed=k + 1)  # type: ignore[arg-type]  # both are roles
            for k, (name, role) in enumerate(zip(names[1:], roles, strict=True))
        ]
