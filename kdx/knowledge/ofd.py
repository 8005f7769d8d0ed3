"""Overhaul of feature distillation: margin ReLU, partial distance, features before the ReLU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.capture import Captured
from kdx.features.adapters import BatchNorm, channels, convolution, full, match_maps, trained
from kdx.features.feature import Feature
from kdx.features.matching import Strategy
from kdx.features.operands import check_choice, check_same_shape, in_full_precision
from kdx.knowledge.paired import PairedLayers
from kdx.tap import TapNames, TapOptions

__all__ = ["OFD", "batchnorm_margin", "ofd"]


@in_full_precision
def ofd(student: Tensor, teacher: Tensor, *, margin: Tensor) -> Tensor:
    """Partial squared distance of a student's map to a teacher's after a margin ReLU.

    With ``t = max(teacher, margin_c)`` the sum of ``(student - t)^2`` over the elements of a sample, leaving out those
    where ``student <= t <= 0``: there the ReLU that follows hides the difference. Averaged over the batch.

    Args:
        student: ``[N, C, ...]`` before the ReLU, any float dtype; computed in float32 (float64 stays).
        teacher: of the same shape, before the ReLU.
        margin: ``[C]``, negative: the mean response of a channel where it is negative.

    Returns:
        A scalar, with gradients to both maps.

    Example:
        >>> import torch
        >>> s, t = torch.tensor([-3.0, 0.0, 1.0, 2.0]), torch.tensor([-9.0, -9.0, -0.5, 3.0])
        >>> ofd(s.view(1, 1, 1, 4), t.view(1, 1, 1, 4), margin=torch.tensor([-1.0])).item()  # 0 + 1 + 2.25 + 1
        4.25
    """
    check_same_shape(student, teacher)
    target = torch.maximum(teacher, margin.to(teacher.dtype)[(..., *[None] * (teacher.dim() - 2))])
    counts = (student > target) | (target > 0)
    return torch.where(counts, (student - target).square(), 0.0).sum() / student.shape[0]


def batchnorm_margin(batchnorm: nn.BatchNorm2d) -> Tensor:
    """The margin ``[C]`` of features that come out of a BatchNorm: ``E[x | x < 0]`` for a normal x.

    The mean is the BatchNorm's bias and the standard deviation its weight. Where less than a thousandth of x is
    negative, minus three standard deviations stand in, as in the authors' code.

    Example:
        >>> round(batchnorm_margin(nn.BatchNorm2d(1)).item(), 4)  # -sqrt(2 / pi)
        -0.7979
    """
    if batchnorm.weight is None or batchnorm.bias is None:
        raise ValueError("batchnorm must have a weight and a bias (affine=True); its features are not normal otherwise")
    return _normal_margin(batchnorm.weight.detach(), batchnorm.bias.detach())


def _normal_margin(weight: Tensor, bias: Tensor) -> Tensor:
    mean, std = bias.double(), weight.double().abs()
    z = -mean / std
    negative = torch.special.ndtr(z)
    density = torch.exp(-0.5 * z.square()) / (2 * torch.pi) ** 0.5
    return torch.where(negative > 0.001, mean - std * density / negative, -3 * std).to(weight.dtype)


class OFD(PairedLayers):
    """Partial distance of features before the ReLU to the teacher's after a margin ReLU, summed over pairs.

    Loss: ``sum_l 2^-(L-1-l) d_p(r(F_s), max(F_t, m))`` over the L pairs from shallow to deep, where ``d_p`` sums the
    squared differences of a sample except where ``r(F_s) <= max(F_t, m) <= 0``, averaged over the batch; no ``T^2``.
    ``r`` is a 1x1 convolution with BatchNorm, learned with the student; gradients reach both. The authors' code weighs
    it by 1e-3 on CIFAR-100, 1e-4 on ImageNet and 1e-5 for segmentation. Tap what enters the ReLU, the output of a
    BatchNorm (``bn1``) or of a residual block's addition (``relu:input``), in a model whose ReLU and addition do not
    work in place, which would overwrite it (an error says so).

    The margin ``m_c`` is the mean of a teacher's channel where it is negative. As in the authors' code it comes from
    the weight and bias of the teacher's BatchNorm, ``margins="batchnorm"`` (:func:`batchnorm_margin`): the tapped one,
    or the one that ran last before the tap. After an addition this is an approximation, in their code too: they take
    the last BatchNorm of the main branch. Without ``margins`` the mean is taken on the batch of ``setup``, for teachers
    without BatchNorm (0 for a channel that is never negative there). It is saved as a buffer.

    In the paper the teacher's BatchNorm normalises by the batch while it teaches, on purpose, and only so are the
    margins exact: ``batch_statistics: true`` in a recipe's section ``teacher``, or
    ``kdx.teachers.Frozen(teacher, train_mode=True)``. The running statistics of the teacher stay as they are::

        knowledge:
          ofd: {name: ofd, weight: 1e-3, student: [stage1.norm1], teacher: [stage1.norm1], margins: batchnorm}

    Args:
        student: taps of maps ``[N, C, H, W]`` before the ReLU, from shallow to deep.
        teacher: taps of maps before the ReLU.
        pairing: see :data:`kdx.features.Strategy`.
        margins: ``"batchnorm"``, one tensor ``[C]`` per pair, or None to take them from the first batch.
        seed: for ``pairing="random"``.
        **features: see :class:`kdx.tap.TapOptions`.

    Raises:
        ValueError: margins of other shapes than the teacher's channels.
        CaptureError: ``"batchnorm"``, and none with weight and bias ran before a tap.

    Paper: Heo et al., A Comprehensive Overhaul of Feature Distillation, ICCV 2019, https://arxiv.org/abs/1904.01866;
    code: https://github.com/clovaai/overhaul-distillation.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"bn": torch.randn(2, 4, 8, 8)}), Captured({"bn": -torch.ones(2, 6, 8, 8)})
        >>> component = OFD(student="bn", teacher="bn")
        >>> component.setup(s, t)
        >>> component.connectors[0].margin
        tensor([-1., -1., -1., -1., -1., -1.])
    """

    builds = True

    def __init__(
        self,
        *,
        student: TapNames,
        teacher: TapNames,
        pairing: Strategy = "explicit",
        margins: Literal["batchnorm"] | Sequence[Tensor] | None = None,
        seed: int = 0,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, pairing=pairing, seed=seed, **features)
        self.margins: list[Tensor] | None = None
        if isinstance(margins, str):
            check_choice("margins", margins, ("batchnorm",))
        elif margins is not None:
            self.margins = [margin.detach().clone() for margin in margins]
        self.norms = tuple(f"{tap}:affine" for tap in self.teacher_layers) if margins == "batchnorm" else ()
        self.teacher_taps = (*self.teacher_layers, *self.norms)
        self.connectors = nn.ModuleList()

    @override
    def setup(self, student: Captured, teacher: Captured) -> None:
        self._affine = teacher.select(self.norms)
        super().setup(student, teacher)
        self._affine = []

    @override
    def build(self, pairs: list[tuple[Feature, Feature]]) -> None:
        assert self.pairs is not None  # setup made them
        margins = self.margins or [_normal_margin(*self._affine[j]) for _, j in self.pairs if self.norms]
        margins = margins or [_mean_negative(teacher) for _, teacher in pairs]
        shapes = [(channels(teacher),) for _, teacher in pairs]
        if [tuple(margin.shape) for margin in margins] != shapes:
            raise ValueError(
                f"margins must have one value per teacher channel, shapes {shapes}, got "
                f"{[tuple(margin.shape) for margin in margins]}"
            )
        for (student, teacher), margin in zip(pairs, margins, strict=True):
            source, target = match_maps(student, teacher)
            connector = _Connector(source.shape[1], target.shape[1], margin, axes=source.dim() - 2)
            self.connectors.append(trained(connector, source))

    @override
    def compare(self, pair: int, student: Feature, teacher: Feature) -> Tensor:
        source, target = match_maps(student, teacher)
        connector = self.connectors[pair]
        weight = 0.5 ** (len(self.connectors) - 1 - pair)
        return weight * ofd(connector(source), target, margin=connector.get_buffer("margin"))


class _Connector(nn.Module):
    """1x1 convolution and BatchNorm, with the margin of the teacher's layer."""

    def __init__(self, inputs: int, outputs: int, margin: Tensor, *, axes: int) -> None:
        super().__init__()
        self.convolution = convolution(inputs, outputs, axes)
        nn.init.kaiming_normal_(self.convolution.get_parameter("weight"), mode="fan_out")
        self.norm = BatchNorm(outputs)
        self.register_buffer("margin", margin)

    @override
    def forward(self, feature: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.convolution(feature))
        return normed


def _mean_negative(feature: Feature) -> Tensor:
    flat = full(feature.channels_first().detach()).transpose(0, 1).flatten(1)  # [C, NHW]
    return flat.clamp(max=0).sum(1) / (flat < 0).sum(1).clamp(min=1)
