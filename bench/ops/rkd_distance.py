"""rkd_distance: the distance-wise loss."""

from __future__ import annotations

from bench import rkd, rkd_authors
from kdx.ops import rkd_distance

BENCH = rkd.bench(
    "rkd_distance", rkd_distance, rkd_authors.rkd_distance, cpu=(64, 256, 1024), gpu=(64, 256, 1024, 4096)
)
