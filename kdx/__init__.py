"""kdx: knowledge distillation behind one small plugin API.

Public names are loaded when they are first used, so that ``import kdx`` is fast and imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdx.lazy import exports

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kdx import analysis as analysis
    from kdx import assistants as assistants
    from kdx import authoring as authoring
    from kdx import datasets as datasets
    from kdx import errors as errors
    from kdx import experiment as experiment
    from kdx import features as features
    from kdx import hf as hf
    from kdx import knowledge as knowledge
    from kdx import models as models
    from kdx import observers as observers
    from kdx import ops as ops
    from kdx import schemes as schemes
    from kdx import store as store
    from kdx import students as students
    from kdx import tasks as tasks
    from kdx import teachers as teachers
    from kdx import testing as testing
    from kdx import training as training
    from kdx.artifact import Artifact as Artifact
    from kdx.artifact import FinishedStudent as FinishedStudent
    from kdx.assistants.base import Assistant as Assistant
    from kdx.batch import Batch as Batch
    from kdx.capture import LOGITS as LOGITS
    from kdx.capture import Captured as Captured
    from kdx.capture import Taps as Taps
    from kdx.directions import Highest as Highest
    from kdx.directions import Lowest as Lowest
    from kdx.errors import KdxError as KdxError
    from kdx.errors import StopRun as StopRun
    from kdx.experiment.experiment import run as run
    from kdx.experiment.exporting import export as export
    from kdx.experiment.trained import load as load
    from kdx.head import Head as Head
    from kdx.hookspecs import hookimpl as hookimpl
    from kdx.knowledge.base import Knowledge as Knowledge
    from kdx.knowledge.hint import Hint as Hint
    from kdx.knowledge.soft_targets import SoftTargets as SoftTargets
    from kdx.layout import Layout as Layout
    from kdx.linear_logits import LinearLogits as LinearLogits
    from kdx.losses import Losses as Losses
    from kdx.losses import Mean as Mean
    from kdx.losses import Over as Over
    from kdx.ref import Ref as Ref
    from kdx.registry import Plugins as Plugins
    from kdx.schemes.base import Scheme as Scheme
    from kdx.schemes.mutual import Mutual as Mutual
    from kdx.schemes.offline import Offline as Offline
    from kdx.schemes.supervised import Supervised as Supervised
    from kdx.spec import Spec as Spec
    from kdx.stage import Stage as Stage
    from kdx.stage import Term as Term
    from kdx.tap import Tap as Tap
    from kdx.tap import TapName as TapName
    from kdx.tap import TapNames as TapNames
    from kdx.tap import TapOptions as TapOptions
    from kdx.tasks.base import Task as Task
    from kdx.teachers.base import Teacher as Teacher
    from kdx.training.loop import fit as fit
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.artifact": ["Artifact", "FinishedStudent"],
            "kdx.assistants.base": ["Assistant"],
            "kdx.batch": ["Batch"],
            "kdx.capture": ["LOGITS", "Captured", "Taps"],
            "kdx.directions": ["Highest", "Lowest"],
            "kdx.errors": ["KdxError", "StopRun"],
            "kdx.experiment.experiment": ["run"],
            "kdx.experiment.exporting": ["export"],
            "kdx.experiment.trained": ["load"],
            "kdx.head": ["Head"],
            "kdx.hookspecs": ["hookimpl"],
            "kdx.knowledge.base": ["Knowledge"],
            "kdx.knowledge.hint": ["Hint"],
            "kdx.knowledge.soft_targets": ["SoftTargets"],
            "kdx.layout": ["Layout"],
            "kdx.linear_logits": ["LinearLogits"],
            "kdx.losses": ["Losses", "Mean", "Over"],
            "kdx.ref": ["Ref"],
            "kdx.registry": ["Plugins"],
            "kdx.schemes.base": ["Scheme"],
            "kdx.schemes.mutual": ["Mutual"],
            "kdx.schemes.offline": ["Offline"],
            "kdx.schemes.supervised": ["Supervised"],
            "kdx.spec": ["Spec"],
            "kdx.stage": ["Stage", "Term"],
            "kdx.tap": ["Tap", "TapName", "TapNames", "TapOptions"],
            "kdx.tasks.base": ["Task"],
            "kdx.teachers.base": ["Teacher"],
            "kdx.training.loop": ["fit"],
        },
        packages=[
            "analysis",
            "assistants",
            "authoring",
            "datasets",
            "errors",
            "experiment",
            "features",
            "hf",
            "knowledge",
            "models",
            "observers",
            "ops",
            "schemes",
            "store",
            "students",
            "tasks",
            "teachers",
            "testing",
            "training",
        ],
        own=["__version__", "make", "plugins"],
    )


def make(kind: str, name: str | Ref, /, *args: Any, **options: Any) -> Any:
    """Builds a component by name from the default registry.

    Args:
        kind: ``"knowledge"``, ``"scheme"``, ``"assistant"``, ``"model"``, ``"dataset"``, ``"task"``,
            ``"student"`` or ``"op"`` (called).
        name: as ``kdx list`` prints it, or a :class:`kdx.Ref`, whose options are added to those given.
        *args: handed to the component.
        **options: handed to the component; ``kdx show NAME`` prints them.

    Raises:
        UnknownNameError: no component of this name; the nearest are listed.
        PluginError: two packages claim the name, or the component does not import.
        TypeError: an option the component does not have.
    """
    return plugins().make(kind, name, *args, **options)  # type: ignore[arg-type]  # checked at run time


def plugins() -> Plugins:
    """The default registry: kdx's own components and those of the installed plugins."""
    from kdx.registry import default_plugins

    return default_plugins()
