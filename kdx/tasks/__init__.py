"""Tasks: the losses that models are trained on and the metrics that judge them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.tasks.base import Task as Task
    from kdx.tasks.classification import Classification as Classification
    from kdx.tasks.embedding import Embedding as Embedding
    from kdx.tasks.embedding import triplet as triplet
    from kdx.tasks.recall_at_one import RecallAtOne as RecallAtOne
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.tasks.base": ["Task"],
            "kdx.tasks.classification": ["Classification"],
            "kdx.tasks.embedding": ["Embedding", "triplet"],
            "kdx.tasks.recall_at_one": ["RecallAtOne"],
        },
    )
