"""Teachers: whatever yields captured tensors for a batch, each with an explicit policy."""

from kdx.teachers.base import Policy, Teacher
from kdx.teachers.deeper import Deeper
from kdx.teachers.ema import EMA
from kdx.teachers.ensemble import Ensemble
from kdx.teachers.frozen import Frozen
from kdx.teachers.live import Live
from kdx.teachers.snapshot import Snapshot
from kdx.teachers.stored import Stored

__all__ = ["EMA", "Deeper", "Ensemble", "Frozen", "Live", "Policy", "Snapshot", "Stored", "Teacher"]
