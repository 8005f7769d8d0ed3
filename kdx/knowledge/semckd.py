"""SemCKD: learned attention decides which teacher layer teaches which student layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Captured
from kdx.features.adapters import bottleneck, match_maps, trained
from kdx.features.feature import Feature
from kdx.features.matching import pair_by_depth
from kdx.knowledge.base import Knowledge
from kdx.knowledge.relation import unit_rows
from kdx.ranges import check_number, check_whole
from kdx.tap import TapNames, TapOptions

__all__ = ["SemCKD", "semckd"]


def semckd(errors: Tensor, energies: Tensor) -> Tensor:
    """Errors of all pairs of layers, weighted by a softmax over the teacher layers.

    ``1/(N S) sum_n sum_s sum_t softmax_t(energies) errors``.

    Args:
        errors: ``[N, S, T]``, mean squared error of a sample for each pair of a student and a teacher layer.
        energies: ``[N, S, T]``.

    Returns:
        A scalar, with gradients to both.

    Example:
        >>> import torch
        >>> semckd(torch.tensor([[[1.0, 3.0]]]), torch.zeros(1, 1, 2)).item()
        2.0
    """
    return (energies.softmax(2) * errors).sum(2).mean()


class SemCKD(Knowledge):
    """Every student layer learns from every teacher layer, weighted by attention over the teacher layers.

    Loss: ``1/(N S) sum_n sum_s sum_t a_nst mean((r_st(F_s) - F_t)^2)`` with ``a = softmax_t(<q_ns, k_nt> /
    temperature)``; no ``T^2``; weight 400 in the authors' CIFAR-100 recipe. ``r_st`` is a 1x1, a 3x3 and a 1x1
    convolution with BatchNorm and ReLU between them and twice the teacher's channels inside; maps are average-pooled to
    the smaller. Query and key of a sample come from its row of similarities ``F_n F_m'`` to the batch. All of it is
    learned with the student; gradients reach it too.

    Unlike the authors' code, whose first layer is as wide as the batch, nothing here depends on the batch size: rows
    are l2-normalised, every entry (student and teacher entries of the same two samples meet) goes through the same
    small network to ``width`` numbers, and query and key are the l2-normalised concatenations over the batch.

    Args:
        student: taps of maps ``[N, C, H, W]``, from shallow to deep.
        teacher: taps of maps.
        width: numbers per entry of a similarity row.
        temperature: divides the product of query and key, which lies in [-1, 1]; smaller is more selective.
        **features: see :class:`kdx.tap.TapOptions`.

    Paper: Chen et al., Cross-Layer Distillation with Semantic Calibration, AAAI 2021,
    https://arxiv.org/abs/2012.03236; code: https://github.com/DefangChen/SemCKD.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> s = Captured({"a": torch.randn(3, 4, 8, 8), "b": torch.randn(3, 8, 4, 4)})
        >>> t = Captured({"c": torch.randn(3, 6, 8, 8)})
        >>> component = SemCKD(student=("a", "b"), teacher="c")
        >>> component.setup(s, t)
        >>> component.attention(list(s.values()), list(t.values())).shape
        torch.Size([3, 2, 1])
    """

    kind = "feature"
    mean_over_samples = False  # the attention compares the samples of the batch

    def __init__(
        self,
        *,
        student: TapNames,
        teacher: TapNames,
        width: int = 16,
        temperature: float = 1.0,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, **features)
        self.width = check_whole("width", width, least=1)
        self.temperature = check_number("temperature", temperature, above=0)
        self.queries, self.keys, self.adapters = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()

    @property
    @override
    def ready(self) -> bool:
        return len(self.adapters) > 0

    @override
    def setup(self, student: Captured, teacher: Captured) -> None:
        if self.ready:
            return
        s, t = self.student_features(student), self.teacher_features(teacher)
        self.queries.extend(trained(_entry_network(self.width), s[0].tensor) for _ in s)
        self.keys.extend(trained(_entry_network(self.width), s[0].tensor) for _ in t)
        for i, j in pair_by_depth("attention", len(s), len(t)):
            source, target = match_maps(s[i], t[j])
            width = target.shape[1]
            adapter = bottleneck(source.shape[1], 2 * width, width, end=False, axes=source.dim() - 2)
            self.adapters.append(trained(adapter, source))

    def attention(self, student: Sequence[Feature | Tensor], teacher: Sequence[Feature | Tensor]) -> Tensor:
        """The weights ``[N, S, T]`` of the teacher layers for each sample and student layer; they sum to 1 over T."""
        return self._energies([Feature.of(f) for f in student], [Feature.of(f) for f in teacher]).softmax(2)

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> Tensor:
        if not self.ready:
            raise RuntimeError("SemCKD has no attention yet; call scheme.setup(batch) before the optimizer is built")
        s = [feature.full() for feature in self.student_features(student)]
        t = [feature.full() for feature in self.teacher_features(teacher)]
        with torch.autocast(s[0].tensor.device.type, enabled=False):
            errors = []
            for adapter, (i, j) in zip(self.adapters, pair_by_depth("attention", len(s), len(t)), strict=True):
                source, target = match_maps(s[i], t[j])
                errors.append((adapter(source) - target).square().flatten(1).mean(1))
            stacked = torch.stack(errors, 1).reshape(-1, len(s), len(t))  # [N, S, T]
            return semckd(stacked, self._energies(s, t))

    def _energies(self, student: list[Feature], teacher: list[Feature]) -> Tensor:
        queries = torch.stack([net(_rows(f)).flatten(1) for net, f in zip(self.queries, student, strict=True)], 1)
        keys = torch.stack([net(_rows(f)).flatten(1) for net, f in zip(self.keys, teacher, strict=True)], 1)
        energies = torch.bmm(F.normalize(queries, dim=2), F.normalize(keys, dim=2).mT)  # [N, S, T]
        return energies / self.temperature


def _entry_network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(1, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


def _rows(feature: Feature) -> Tensor:
    """Similarities of every sample to the batch ``[N, N, 1]``, rows of length sqrt(N): entries keep their size."""
    flat = feature.batch_first().flatten(1)
    rows = unit_rows(flat @ flat.T)  # a dead sample has a row of zeros, with a gradient that stays small
    return (rows * math.sqrt(len(rows)))[:, :, None]
