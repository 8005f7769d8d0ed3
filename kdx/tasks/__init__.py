"""Tasks: what outputs and targets are, the losses that models are trained on and the metrics that judge them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.tasks.base import Task as Task
    from kdx.tasks.binary import Binary as Binary
    from kdx.tasks.causal_lm import CausalLM as CausalLM
    from kdx.tasks.classification import Classification as Classification
    from kdx.tasks.classification import cross_entropy as cross_entropy
    from kdx.tasks.embedding import Embedding as Embedding
    from kdx.tasks.embedding import triplet as triplet
    from kdx.tasks.heads import Head as Head
    from kdx.tasks.heads import Heads as Heads
    from kdx.tasks.multi_label import MultiLabel as MultiLabel
    from kdx.tasks.recall_at_one import RecallAtOne as RecallAtOne
    from kdx.tasks.regression import Regression as Regression
    from kdx.tasks.segmentation import Segmentation as Segmentation
    from kdx.tasks.token_classification import TokenClassification as TokenClassification
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.tasks.base": ["Task"],
            "kdx.tasks.binary": ["Binary"],
            "kdx.tasks.causal_lm": ["CausalLM"],
            "kdx.tasks.classification": ["Classification", "cross_entropy"],
            "kdx.tasks.embedding": ["Embedding", "triplet"],
            "kdx.tasks.heads": ["Head", "Heads"],
            "kdx.tasks.multi_label": ["MultiLabel"],
            "kdx.tasks.recall_at_one": ["RecallAtOne"],
            "kdx.tasks.regression": ["Regression"],
            "kdx.tasks.segmentation": ["Segmentation"],
            "kdx.tasks.token_classification": ["TokenClassification"],
        },
    )
