"""Squared Euclidean distances between two sets of points, the ground of the relational losses. See README.md."""

from kdx.ops.pairwise_sq_dist.api import pairwise_sq_dist

__all__ = ["pairwise_sq_dist"]
