"""Squared Euclidean distances between two sets of points, the ground of the relational losses. See README.md."""
