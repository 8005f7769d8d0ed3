"""Relational knowledge distillation: distances and angles of a batch of embeddings. See README.md."""

from kdx.ops.rkd.api import rkd, rkd_angle, rkd_distance

__all__ = ["rkd", "rkd_angle", "rkd_distance"]
