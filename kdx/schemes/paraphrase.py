"""Paraphrase: the first stage of factor transfer, which trains the paraphraser of a teacher's layer."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.features.operands import Variant, check_choice
from kdx.modes import hold
from kdx.schemes.one_student import OneStudent
from kdx.teachers.paraphrased import Paraphrased

__all__ = ["Paraphrase"]


class Paraphrase(OneStudent):
    """Trains the paraphraser of a :class:`kdx.teachers.Paraphrased` teacher to give its feature map again.

    Total: ``mean |x - P(x)|`` over all elements (``variant="code"``) or ``||x - P(x)||^2``, summed over a sample's
    elements and averaged over the batch (``"paper"``), of the map x of the teacher's layer and what encoder and decoder
    make of it. No labels. The teacher runs in evaluation mode, gets no gradient and stays as it is. What is trained
    here teaches in the next stage, as the teacher of a scheme with the knowledge ``ft``; the assistant
    ``factor-transfer`` plans both.

    Args:
        student: a :class:`kdx.teachers.Paraphrased`, in a recipe the model ``paraphrased``.
        variant: ``"code"`` or ``"paper"``, the losses above.

    Raises:
        TypeError: another model.

    Paper: Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018,
    https://arxiv.org/abs/1802.04977, equation 1; code: https://github.com/Jangho-Kim/Factor-Transfer-pytorch.
    """

    def __init__(self, student: nn.Module, *, variant: Variant = "code") -> None:
        if not isinstance(student, Paraphrased):
            raise TypeError(
                f"student: expected a kdx.teachers.Paraphrased, the teacher with its paraphraser, got "
                f"{type(student).__name__}; write Paraphrased(teacher, layer, channels=...)"
            )
        check_choice("variant", variant, ("paper", "code"))
        super().__init__(student, task=None)
        self.variant = variant
        student.teacher.requires_grad_(False)
        hold(student.teacher)

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        hold(self._paraphrased.teacher)
        return self

    @property
    def _paraphrased(self) -> Paraphrased:
        assert isinstance(self.student, Paraphrased)  # __init__ saw to it
        return self.student

    @override
    def terms(self, batch: Batch) -> dict[str, Tensor]:
        model = self._paraphrased
        hold(model.teacher)
        feature = model.feature(model.taps(batch.inputs).detach())
        missed = feature - model.paraphraser.decode(model.paraphraser(feature))
        if self.variant == "paper":
            return {"paraphraser": missed.square().sum() / max(1, missed.shape[0])}
        return {"paraphraser": missed.abs().mean()}
