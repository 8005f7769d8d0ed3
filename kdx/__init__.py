"""kdx: knowledge distillation behind one small plugin API.

Public names are loaded when they are first used, so that ``import kdx`` is fast and imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kdx import ops as ops
    from kdx import students as students
    from kdx import testing as testing
    from kdx.assistants.base import Assistant as Assistant
    from kdx.batch import Batch as Batch
    from kdx.capture import Captured as Captured
    from kdx.errors import KdxError as KdxError
    from kdx.experiment.experiment import run as run
    from kdx.hookspecs import Spec as Spec
    from kdx.hookspecs import hookimpl as hookimpl
    from kdx.knowledge.base import Knowledge as Knowledge
    from kdx.knowledge.hint import Hint as Hint
    from kdx.knowledge.soft_targets import SoftTargets as SoftTargets
    from kdx.losses import Losses as Losses
    from kdx.registry import default_plugins as plugins  # noqa: F401  # a public name, loaded below
    from kdx.schemes.base import Scheme as Scheme
    from kdx.schemes.mutual import Mutual as Mutual
    from kdx.schemes.offline import Offline as Offline
    from kdx.schemes.supervised import Supervised as Supervised
    from kdx.teachers import Teacher as Teacher
    from kdx.training.loop import fit as fit

_PUBLIC = {
    "Assistant": "kdx.assistants.base",
    "Batch": "kdx.batch",
    "Captured": "kdx.capture",
    "Hint": "kdx.knowledge.hint",
    "KdxError": "kdx.errors",
    "Knowledge": "kdx.knowledge.base",
    "Losses": "kdx.losses",
    "Mutual": "kdx.schemes.mutual",
    "Offline": "kdx.schemes.offline",
    "Scheme": "kdx.schemes.base",
    "SoftTargets": "kdx.knowledge.soft_targets",
    "Spec": "kdx.hookspecs",
    "Supervised": "kdx.schemes.supervised",
    "Teacher": "kdx.teachers",
    "fit": "kdx.training.loop",
    "hookimpl": "kdx.hookspecs",
    "ops": "",
    "plugins": "kdx.registry:default_plugins",
    "run": "kdx.experiment.experiment",
    "students": "",
    "testing": "",
}
__all__ = [*_PUBLIC, "__version__", "make"]  # noqa: PLE0604  # all strings


def make(kind: str, name: str, /, *args: Any, **options: Any) -> Any:
    """Builds a component by name from the default registry.

    Args:
        kind: ``"knowledge"``, ``"scheme"``, ``"assistant"``, ``"model"``, ``"dataset"`` or ``"op"`` (called).
        name: as ``kdx list`` prints it.
        *args: handed to the component.
        **options: handed to the component; ``kdx show NAME`` prints them.

    Raises:
        UnknownNameError: no component of this name; the nearest are listed.
        PluginError: two packages claim the name, or the component does not import.
        TypeError: an option the component does not have.
    """
    from kdx.registry import default_plugins

    return default_plugins().make(kind, name, *args, **options)  # type: ignore[arg-type]  # checked at run time


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kdx' has no attribute {name!r}")
    where = _PUBLIC[name]
    if not where:
        return importlib.import_module(f"kdx.{name}")
    module, _, attribute = where.partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
