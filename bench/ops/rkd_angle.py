"""rkd_angle: the angle-wise loss."""

from __future__ import annotations

from bench import rkd, rkd_authors
from bench.registry import Inputs
from kdx.ops import rkd_angle

EAGER_BYTES = 4 << 30


def _too_large(inputs: Inputs) -> str | None:
    n, d = inputs[0].shape
    needed = rkd_authors.angle_bytes(n, d)
    return None if needed <= EAGER_BYTES else f"needs {needed / 1e9:.0f} GB for {n} points"


BENCH = rkd.bench(
    "rkd_angle",
    rkd_angle,
    rkd_authors.rkd_angle,
    cpu=(64, 128, 256, 1024),
    gpu=(64, 128, 256, 1024, 4096),
    too_large=_too_large,
)
