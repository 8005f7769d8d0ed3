"""A teacher's outputs on disk: written once, read by sample and view."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.store.imported import import_topk as import_topk
    from kdx.store.manifest import Manifest as Manifest
    from kdx.store.reader import Store as Store
    from kdx.store.writer import write_store as write_store
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.store.imported": ["import_topk"],
            "kdx.store.manifest": ["Manifest"],
            "kdx.store.reader": ["Store"],
            "kdx.store.writer": ["write_store"],
        },
    )
