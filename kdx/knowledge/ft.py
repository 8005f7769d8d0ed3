"""Factor transfer: the student's factor, translated, points where the teacher's paraphrased one does."""

from __future__ import annotations

from typing import Unpack, get_args

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from kdx.features.adapters import match_maps, trained
from kdx.features.feature import Feature
from kdx.features.operands import Variant, check_choice, check_same_shape, in_full_precision
from kdx.features.paraphraser import factor_layers
from kdx.knowledge.paired import PairedLayers
from kdx.tap import TapName, TapOptions

__all__ = ["FT", "factor_transfer"]


@in_full_precision
def factor_transfer(student: Tensor, teacher: Tensor, *, variant: Variant = "code") -> Tensor:
    """L1 distance of two factors, each divided by its Euclidean norm over all channels and places of a sample.

    Args:
        student: ``[N, ...]``, any float dtype; computed in float32 (float64 stays).
        teacher: of the same shape.
        variant: ``"code"``: the mean over all elements; ``"paper"``: summed over a sample's elements, averaged over the
            batch.

    Returns:
        A scalar, with gradients to both; a factor of zeros stays one.

    Example:
        >>> import torch
        >>> factor_transfer(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]]), variant="paper").item()
        0.8000000...
    """
    check_same_shape(student, teacher)
    apart = (F.normalize(student.flatten(1)) - F.normalize(teacher.flatten(1))).abs()
    return apart.mean() if variant == "code" else apart.sum() / max(1, apart.shape[0])


class FT(PairedLayers):
    """Distance between the direction of the student's translated factor and that of the teacher's paraphrased one.

    Loss: ``mean |f_s / ||f_s|| - f_t / ||f_t|||`` over all elements (``variant="code"``) or its sum over a sample's
    elements, averaged over the batch (``"paper"``, whose p = 1); norms over all channels and places of a sample. No
    ``T^2``. ``f_t`` is what the teacher's paraphraser gives, ``f_s`` what a translator of the same form (three 3x3
    convolutions with leaky ReLUs) makes of the student's layer; it is learned with the student, so gradients reach
    both. The larger of the two maps is pooled to the smaller before. The authors weigh the ``"code"`` form by 500,
    beside a cross-entropy of 1.

    The paraphraser is trained first, without labels: :class:`kdx.teachers.Paraphrased` is the teacher with it, the
    scheme ``paraphrase`` trains it, and the assistant ``factor-transfer`` does that before the student's stage::

        assistant: {name: factor-transfer, layer: stage4, train: {epochs: 3}}
        knowledge:
          ft: {name: ft, weight: 500.0, student: stage2}

    Args:
        student: tap of a map ``[N, C, H, W]``, or of tokens on a grid; the authors take the last one.
        teacher: tap of the factor.
        variant: ``"paper"`` or ``"code"``.
        **features: see :class:`kdx.tap.TapOptions`.

    Paper: Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018,
    https://arxiv.org/abs/1802.04977; code: https://github.com/Jangho-Kim/Factor-Transfer-pytorch.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"conv": torch.zeros(2, 6, 8, 8)}), Captured({"paraphraser": torch.ones(2, 4, 4, 4)})
        >>> factor = FT(student="conv")
        >>> factor.setup(s, t)
        >>> factor.translators[0][4].weight.shape
        torch.Size([4, 4, 3, 3])
    """

    builds = True

    def __init__(
        self,
        *,
        student: TapName,
        teacher: TapName = "paraphraser",
        variant: Variant = "code",
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, **features)
        check_choice("variant", variant, get_args(Variant))
        self.variant: Variant = variant
        self.translators = nn.ModuleList()

    @override
    def build(self, pairs: list[tuple[Feature, Feature]]) -> None:
        for student, teacher in pairs:
            s, t = match_maps(student, teacher)
            self.translators.append(trained(factor_layers(s.shape[1], t.shape[1], s.dim() - 2), s))

    @override
    def compare(self, pair: int, student: Feature, teacher: Feature) -> Tensor:
        s, t = match_maps(student, teacher)
        return factor_transfer(self.translators[pair](s), t, variant=self.variant)
