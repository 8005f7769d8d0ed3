"""The training loop and what belongs to it: optimizers, evaluation, checkpoints, batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.training.batches import ResumableLoader as ResumableLoader
    from kdx.training.checkpoint import export_weights as export_weights
    from kdx.training.checkpoint import latest_checkpoint as latest_checkpoint
    from kdx.training.checkpoint import load_checkpoint as load_checkpoint
    from kdx.training.checkpoint import load_tensors as load_tensors
    from kdx.training.evaluation import Metrics as Metrics
    from kdx.training.evaluation import classification as classification
    from kdx.training.evaluation import evaluate as evaluate
    from kdx.training.gradients import term_gradients as term_gradients
    from kdx.training.ledger import Compute as Compute
    from kdx.training.loop import fit as fit
    from kdx.training.optim import OptimizerSpec as OptimizerSpec
    from kdx.training.optim import ScheduleSpec as ScheduleSpec
    from kdx.training.optim import make_optimizer as make_optimizer
    from kdx.training.optim import make_schedule as make_schedule
    from kdx.training.prequential import Prequential as Prequential
    from kdx.training.run import Run as Run
    from kdx.training.run import StageInfo as StageInfo
    from kdx.training.weights import load_weights as load_weights
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.training.batches": ["ResumableLoader"],
            "kdx.training.checkpoint": ["export_weights", "latest_checkpoint", "load_checkpoint", "load_tensors"],
            "kdx.training.evaluation": ["Metrics", "classification", "evaluate"],
            "kdx.training.gradients": ["term_gradients"],
            "kdx.training.loop": ["fit"],
            "kdx.training.optim": ["OptimizerSpec", "ScheduleSpec", "make_optimizer", "make_schedule"],
            "kdx.training.prequential": ["Prequential"],
            "kdx.training.ledger": ["Compute"],
            "kdx.training.run": ["Run", "StageInfo"],
            "kdx.training.weights": ["load_weights"],
        },
    )
