"""A teacher's outputs on disk: written once, read by sample and view. See README.md."""

from kdx.store.reader import Store
from kdx.store.writer import write_store

__all__ = ["Store", "write_store"]
