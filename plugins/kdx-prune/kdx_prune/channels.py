"""Students that keep the channels of the highest importance."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn
from typing_extensions import override

from kdx.errors import StudentError
from kdx.students import ChannelGroup, Derivation, Plan, StudentData, Width, plan_width
from kdx_prune.importance import Importance, score

__all__ = ["ByImportance"]

Spread = Literal["uniform", "global"]
Unfit = Literal["skip", "refuse"]


class ByImportance(Derivation):
    """Fewer channels, those that matter least gone first: by activation, norm, task loss or distillation loss.

    Channels are followed as ``width`` follows them: through residual sums, concatenations, depth-wise convolutions,
    norms, flattening, padded shortcuts and attention, whatever the control flow. The edit is that of ``width`` with the
    channels that go written down, so that a pruned student is built again from its config by kdx alone.

    Args:
        importance: ``l1`` and ``l2`` (filters), ``activation``, ``taylor`` or ``distillation``; see
            :func:`kdx_prune.importance.score`.
        spread: ``uniform`` keeps the same share of every layer's channels; under ``global`` all channels of the network
            compete, so that layers end up with unequal shares. Importances are divided by their mean within a layer
            first: as they are, wide layers lose most of their channels at once, each of which alone matters little.
        least: under ``global`` the share of each layer's channels that always stays.
        rows: training rows that are looked at, at most.
        unfit: what to do about layers that cannot lose channels: ``skip`` keeps them (``kept`` says which and why),
            ``refuse`` is an error that names them.

    Raises:
        ValueError: an option out of range.

    Paper: Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019,
    https://arxiv.org/abs/1906.10771; Theis et al., Faster gaze prediction with dense networks and Fisher pruning, 2018,
    https://arxiv.org/abs/1801.05787.

    Example:
        >>> import torch, kdx
        >>> data = kdx.students.StudentData(kdx.testing.toy_batches(2), task=kdx.make("task", "classification"))
        >>> way, images = ByImportance(importance="taylor"), torch.zeros(2, 1, 8, 8)
        >>> pruned = kdx.students.derive(kdx.testing.toy_teacher(), images, how=way, params="50%", data=data)
        >>> pruned.edit.importance, pruned.model.hidden.out_features
        ('given', 22)
    """

    edit = Width

    def __init__(
        self,
        *,
        importance: Importance = "activation",
        spread: Spread = "uniform",
        least: float = 0.1,
        rows: int = 1024,
        unfit: Unfit = "skip",
    ) -> None:
        for name, value, allowed in (
            ("importance", importance, get_args(Importance)),
            ("spread", spread, get_args(Spread)),
            ("unfit", unfit, get_args(Unfit)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
        if not 0 <= least <= 1:
            raise ValueError(f"least must be a share between 0 and 1; got {least}")
        if rows < 1:
            raise ValueError(f"rows must be at least 1; got {rows}")
        self.importance: Importance = importance
        self.spread: Spread = spread
        self.least = least
        self.rows = rows
        self.unfit: Unfit = unfit
        self.needs_data = importance not in ("l1", "l2")
        self.teacher: nn.Module | None = None

    def guided_by(self, teacher: nn.Module) -> ByImportance:
        """The same, with the outputs of a teacher as those that ``distillation`` asks for.

        Args:
            teacher: of the same inputs and outputs; without one the network that is pruned is its own teacher.
        """
        guided = copy.copy(self)
        guided.teacher = teacher
        return guided

    @override
    def plan(self, model: nn.Module, inputs: Any, data: StudentData | None = None) -> Plan:
        """See :meth:`kdx.students.Derivation.plan`."""

        def scores(groups: Sequence[ChannelGroup]) -> list[Tensor]:
            found = score(self.importance, model, groups, data, rows=self.rows, teacher=self.teacher)
            if self.spread == "global":
                return [one / one.mean().clamp(min=1e-30) for one in found]
            return found

        plan = plan_width(model, inputs, scores=scores, spread=self.spread, least=self.least)
        if self.unfit == "refuse" and plan.kept:
            named = "; ".join(f"{kept.module}: {kept.reason}" for kept in plan.kept)
            raise StudentError(
                f"these cannot lose channels ({named}); unfit: skip keeps them as they are and prunes the others"
            )
        return plan
