"""Observers of a run: logs, progress, trackers, early stopping."""
