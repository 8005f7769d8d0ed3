"""kdx inside the trainers of Hugging Face."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.hf.mixin import DistillationMixin as DistillationMixin
else:
    __getattr__, __dir__, __all__ = exports(__name__, {"kdx.hf.mixin": ["DistillationMixin"]})
