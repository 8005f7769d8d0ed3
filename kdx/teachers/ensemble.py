"""Several teachers as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import IGNORE, Batch
from kdx.capture import LOGITS, Captured, Provenance, Taps
from kdx.class_numbers import check_class_numbers
from kdx.errors import CaptureError, nearest
from kdx.layout import Layout, UnknownLayout
from kdx.ranges import check_number
from kdx.responses import Responses, class_rows
from kdx.store.provenance import SampledClasses, TopClasses
from kdx.teachers.base import Teacher
from kdx.teachers.frozen import as_teacher

__all__ = ["Ensemble", "confidence"]


class Ensemble(Teacher):
    """Several teachers as one: their logits are combined, their layers can be tapped one by one.

    The tap ``logits`` is the combination, ``<member>/<tap>`` a tap of one member, ``<member>/logits`` included.
    So one component can learn from all of them and another from the layers of one. With weights ``w_k`` that are
    positive and sum to 1 (in each row):

    - ``over="logits"``: ``z = sum_k w_k z_k``, the geometric mean of the probabilities;
    - ``over="probabilities"``: ``z = T log sum_k w_k softmax(z_k / T)``, so that soft targets at the same temperature
      T see the mean of the softened probabilities.

    Every member keeps its own mode, dtype and device. Where a member's classes are sampled (:mod:`kdx.store.sample`),
    the combination is unbiased with ``over="probabilities"`` at their temperature and constant weights; other
    combinations of them are refused.

    Args:
        teachers: name -> :class:`Teacher`, or plain model, held frozen; at least two.
        weights: ``"equal"``; name -> number >= 0, scaled to sum 1, as by accuracy on held-out rows; or
            ``"confidence"``: per row, see :func:`confidence`; needs labels, rows without one weigh equally.
        over: what is averaged.
        temperature: T for ``over="probabilities"``.
        class_dim: axis of the classes in the logits; None: what the task of the scheme says, else axis 1 of ``[N, C]``
            and ``[N, C, d1, d2, ...]`` and the last of ``[N, L, C]`` (see :class:`kdx.responses.Responses`).

    Raises:
        ValueError: fewer than two teachers, weights that do not fit, a name with '/' or '.' in it.
        CaptureError: a tap that names no member.

    Papers: You et al., Learning from Multiple Teacher Networks, KDD 2017, https://doi.org/10.1145/3097983.3098135
    (mean of softened probabilities); Zhang et al., Confidence-Aware Multi-Teacher Knowledge Distillation, ICASSP 2022,
    https://arxiv.org/abs/2201.00007 (weights per row).

    Example:
        >>> one, two = nn.Linear(1, 2), nn.Linear(1, 2)
        >>> for model, value in ((one, 2.0), (two, 4.0)):
        ...     for parameter in model.parameters():
        ...         _ = parameter.data.fill_(value)
        >>> ensemble = Ensemble({"one": one, "two": two}, weights={"one": 3.0, "two": 1.0})
        >>> ensemble(Batch(torch.zeros(1, 1))).logits.tolist()
        [[2.5, 2.5]]
    """

    constant: Tensor

    def __init__(
        self,
        teachers: Mapping[str, nn.Module | Teacher],
        *,
        weights: Literal["equal", "confidence"] | Mapping[str, float] = "equal",
        over: Literal["logits", "probabilities"] = "logits",
        temperature: float = 1.0,
        class_dim: int | None = None,
    ) -> None:
        super().__init__()
        if len(teachers) < 2:
            raise ValueError(f"teachers must name at least two teachers, got {sorted(teachers)}")
        if wrong := [name for name in teachers if not name or "." in name or "/" in name]:
            raise ValueError(f"teachers: the name {wrong[0]!r} is not allowed; give one without '.' and '/'")
        if over not in ("logits", "probabilities"):
            raise ValueError(f"over must be 'logits' or 'probabilities', got {over!r}")
        temperature = check_number("temperature", temperature, above=0)
        self.teachers = nn.ModuleDict({name: as_teacher(teacher) for name, teacher in teachers.items()})
        if held := [name for name, member in self.members.items() if LOGITS in member.held_taps]:
            raise ValueError(
                f"teachers: {held[0]!r} holds its logits as hidden states and a head, and those of several are "
                "combined as tensors; leave kdx.Head out of its output="
            )
        self.per_row = weights == "confidence"
        self.over = over
        self.class_dim = class_dim
        self.responses = Responses(class_dim=class_dim)
        self.temperature = temperature
        self.register_buffer("constant", _shares(list(teachers), weights), persistent=False)

    @property
    def members(self) -> dict[str, Teacher]:
        """Name -> teacher."""
        return {name: teacher for name, teacher in self.teachers.items() if isinstance(teacher, Teacher)}

    @property
    @override
    def teaches(self) -> bool:
        return all(member.teaches for member in self.members.values())

    @override
    def bind(self, responses: Responses) -> None:
        self.responses = responses if self.class_dim is None else replace(responses, class_dim=self.class_dim)
        for member in self.members.values():
            member.bind(responses)

    @override
    def share_taps(self, taps: Taps) -> None:
        for member in self.members.values():
            member.share_taps(taps)

    @override
    def tap(self, names: Iterable[str]) -> None:
        for name in names:
            if name != LOGITS:
                member, slash, tap = name.partition("/")
                if not slash or member not in self.teachers:
                    raise CaptureError(
                        f"tap {name!r} of several teachers must be 'logits' or '<teacher>/<tap>'; "
                        f"{nearest(member, self.teachers)}"
                    )
                self.members[member].tap([tap])

    @override
    def forward(self, batch: Batch) -> Captured:
        return self._combined({name: member(batch) for name, member in self.members.items()}, batch)

    @override
    def captured_for(self, batch: Batch, student: Captured) -> Captured:
        return self._combined(
            {name: member.captured_for(batch, student) for name, member in self.members.items()}, batch
        )

    def _combined(self, answers: Mapping[str, Captured], batch: Batch) -> Captured:
        shapes = {name: list(captured.logits.shape) for name, captured in answers.items()}
        if len({*map(tuple, shapes.values())}) > 1:
            raise ValueError(
                f"teachers: their logits must have one shape to be combined, got {shapes}; pick the classes that all "
                "have, as Frozen(model, output=lambda out: out[:, classes])"
            )
        logits = torch.stack([captured.logits for captured in answers.values()])  # [K, N, C]
        values = {LOGITS: self._mean(logits, batch)}
        patterns: dict[str, tuple[str, ...]] = {LOGITS: (LOGITS,)}
        provenance = self._provenance(answers)
        layouts: dict[str, Layout | UnknownLayout] = {}
        for name, captured in answers.items():
            values |= {f"{name}/{tap}": value for tap, value in captured.items()}
            patterns |= {
                f"{name}/{tap}": tuple(f"{name}/{found}" for found in names) for tap, names in captured.patterns.items()
            }
            provenance |= {
                f"{name}/{tap}": tuple(
                    replace(part, held=False) if isinstance(part, TopClasses) else part for part in parts
                )
                for tap, parts in captured.provenance.items()
            }
            layouts |= {f"{name}/{tap}": layout for tap, layout in captured.layouts.items()}
        return Captured(values, patterns, provenance=provenance, layouts=layouts).detach()

    def _provenance(self, answers: Mapping[str, Captured]) -> dict[str, tuple[Provenance, ...]]:
        """Says of the combined logits that some members' are sampled or top classes."""
        parts = [part for captured in answers.values() for part in captured.provenance.get(LOGITS, ())]
        found: list[Provenance] = []
        sampled = SampledClasses.combined(
            (part for part in parts if isinstance(part, SampledClasses)),
            temperature=self.temperature,
            linear=self.over == "probabilities" and not self.per_row,
        )
        if sampled is not None:
            found.append(sampled)
        tails = frozenset[float]().union(*(part.temperatures for part in parts if isinstance(part, TopClasses)))
        if tails:  # right at the temperatures of the members, or at which the combination is made
            found.append(TopClasses(tails | {self.temperature} if self.over == "probabilities" else tails))
        return {LOGITS: tuple(found)} if found else {}

    def _mean(self, logits: Tensor, batch: Batch) -> Tensor:
        shape = [-1, *[1] * (logits.dim() - 1)]
        dim = 1 + self.responses.axis(logits.shape[1:])
        if self.per_row:
            rows = torch.stack([class_rows(each, dim - 1) for each in logits])  # [K, R, C]
            elements = logits.shape[1:dim] + logits.shape[dim + 1 :]
            targets = self.responses.aligned(batch.targets)
            weights = confidence(rows, _labels(targets, elements, logits.shape[dim])).view(-1, *elements).unsqueeze(dim)
        else:
            weights = self.constant.to(logits.dtype).view(shape)
        if self.over == "logits":
            return (weights * logits).sum(0)
        log_p = (logits / self.temperature).log_softmax(dim)
        return self.temperature * (log_p + weights.log()).logsumexp(0)


def confidence(logits: Tensor, targets: Tensor) -> Tensor:
    """Weights of the teachers in each row, by their cross-entropy with the label.

    ``w_k = (1 - exp(CE_k) / sum_j exp(CE_j)) / (K - 1)``; 1 / K in a row without a label. Sums to 1 over teachers.

    Args:
        logits: ``[K, N, C]`` of K >= 2 teachers.
        targets: ``[N]`` int64; ``-100`` marks a row without a label.

    Returns:
        ``[K, N]``.

    Paper: Zhang et al., Confidence-Aware Multi-Teacher Knowledge Distillation, ICASSP 2022,
    https://arxiv.org/abs/2201.00007.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]], [[0.0, 2.0]]])
        >>> [round(weight, 2) for weight in confidence(logits, torch.tensor([0])).flatten().tolist()]
        [0.45, 0.41, 0.14]
    """
    teachers, rows, classes = logits.shape
    loss = F.cross_entropy(
        logits.reshape(-1, classes).float(), targets.repeat(teachers), ignore_index=IGNORE, reduction="none"
    )
    weights = (1 - loss.view(teachers, rows).softmax(0)) / (teachers - 1)
    return torch.where(targets != IGNORE, weights, 1 / teachers).to(logits.dtype)


def _labels(targets: Any, elements: torch.Size, classes: int) -> Tensor:
    if not isinstance(targets, Tensor) or targets.shape != elements or targets.is_floating_point():
        came = f"shape {list(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(
            "weights='confidence' compares every teacher with the label and needs batch.targets of classes, "
            f"{list(elements)} for these logits, got {came}; give targets (-100 where there is no label), or constant "
            "weights"
        )
    check_class_numbers("weights='confidence'", targets, classes, waits=False)
    return targets.flatten()


def _shares(names: list[str], weights: str | Mapping[str, float]) -> Tensor:
    if isinstance(weights, str):
        if weights not in ("equal", "confidence"):
            raise ValueError(f"weights must be 'equal', 'confidence' or a mapping of numbers, got {weights!r}")
        return torch.full((len(names),), 1 / len(names))
    if sorted(weights) != sorted(names):
        raise ValueError(
            f"weights must have one number for each of the teachers {sorted(names)}, got {sorted(weights)}"
        )
    shares = torch.tensor([check_number(f"weights: {name!r}", weights[name], least=0) for name in names])
    if not shares.any():
        raise ValueError(f"weights must not be all 0, got {dict(weights)}")
    return shares / shares.sum()
