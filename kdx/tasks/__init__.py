"""Tasks: what models are trained and judged for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.tasks.kinds import TaskKind as TaskKind
    from kdx.tasks.kinds import retrieval as retrieval
    from kdx.tasks.kinds import task_kind as task_kind
    from kdx.tasks.kinds import triplet as triplet
    from kdx.tasks.recall_at_one import RecallAtOne as RecallAtOne
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.tasks.kinds": ["TaskKind", "retrieval", "task_kind", "triplet"],
            "kdx.tasks.recall_at_one": ["RecallAtOne"],
        },
    )
