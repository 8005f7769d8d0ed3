"""The metric that a run is judged by: its direction, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kdx.directions import Highest, Lowest
from kdx.tasks.base import Task

__all__ = ["Quality"]


@dataclass(frozen=True, slots=True)
class Quality:
    """The metric that a run is judged by.

    Args:
        metric: its name among the metrics of the task.
        metric_label: its name in a report.
        higher_is_better: whether more of it is better.
        share: whether it is a share of 1, shown in percent, rather than a quantity with a unit of its own.
    """

    metric: str
    metric_label: str
    higher_is_better: bool = True
    share: bool = True

    @classmethod
    def of(cls, task: Task) -> Quality:
        """That of a task."""
        return cls(task.metric, task.label, task.higher_is_better, task.share)

    @classmethod
    def read(cls, summary: Mapping[str, Any]) -> Quality:
        """That of a run's summary."""
        return cls(**{name: summary[name] for name in cls.__dataclass_fields__})

    @property
    def select(self) -> str:
        """The metric with its direction, as :func:`kdx.fit` takes it."""
        return Highest(self.metric) if self.higher_is_better else Lowest(self.metric)

    @property
    def unit(self) -> str:
        """The end of the name of a column with its values."""
        return ", %" if self.share else ""

    @property
    def gain_column(self) -> str:
        """The name of the column with the gain."""
        return "gain, points" if self.share else "gain"

    def scaled(self, value: float) -> float:
        """A value as it is shown: a share in percent."""
        return 100 * value if self.share else value

    def gain(self, student: float, alone: float) -> float:
        """The gain of a student over another, in points if it is a share; above 0 where the student is better."""
        return self.scaled(student - alone if self.higher_is_better else alone - student)

    def text(self, value: float) -> str:
        """A value, two decimals of a percentage and four digits of anything else."""
        return f"{100 * value:.2f}" if self.share else f"{value:.4g}"

    def gain_text(self, gain: float) -> str:
        """A gain with its sign."""
        return f"{gain:+.2f}" if self.share else f"{gain:+.3g}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a summary."""
        return asdict(self)
