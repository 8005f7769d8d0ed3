"""Teachers: sources of captured tensors for a batch, each held as its class says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.teachers.base import ModelTeacher as ModelTeacher
    from kdx.teachers.base import Teacher as Teacher
    from kdx.teachers.deeper import Deeper as Deeper
    from kdx.teachers.ema import EMA as EMA
    from kdx.teachers.ensemble import Ensemble as Ensemble
    from kdx.teachers.ensemble import confidence as confidence
    from kdx.teachers.frozen import Frozen as Frozen
    from kdx.teachers.frozen import as_teacher as as_teacher
    from kdx.teachers.live import Live as Live
    from kdx.teachers.paraphrased import Paraphrased as Paraphrased
    from kdx.teachers.snapshot import Snapshot as Snapshot
    from kdx.teachers.stored import Stored as Stored
    from kdx.teachers.top_k import TopK as TopK
    from kdx.teachers.top_k import top_classes as top_classes
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.teachers.base": ["ModelTeacher", "Teacher"],
            "kdx.teachers.deeper": ["Deeper"],
            "kdx.teachers.ema": ["EMA"],
            "kdx.teachers.ensemble": ["Ensemble", "confidence"],
            "kdx.teachers.frozen": ["Frozen", "as_teacher"],
            "kdx.teachers.live": ["Live"],
            "kdx.teachers.paraphrased": ["Paraphrased"],
            "kdx.teachers.snapshot": ["Snapshot"],
            "kdx.teachers.stored": ["Stored"],
            "kdx.teachers.top_k": ["TopK", "top_classes"],
        },
    )
