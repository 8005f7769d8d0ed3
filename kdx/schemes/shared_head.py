"""One product of the student's head for two terms: the task's cross-entropy and a divergence of the same logits."""

from __future__ import annotations

from collections.abc import Mapping

from kdx.batch import Batch
from kdx.blame import blaming
from kdx.capture import Captured
from kdx.knowledge.base import Knowledge
from kdx.knowledge.cross_entropy_beside import CrossEntropyBeside
from kdx.knowledge.divergence import Divergence
from kdx.linear_logits import LinearLogits
from kdx.losses import Mean, Over
from kdx.schemes.base import Scheme
from kdx.tasks.causal_lm import CausalLM

__all__ = ["Beside", "shared", "shared_task_terms"]

Beside = tuple[str, CrossEntropyBeside]
"""The name of a component, and the cross-entropy that it computes along."""


def shared(
    scheme: Scheme, components: Mapping[str, Knowledge], student: Captured, teacher: Captured, batch: Batch
) -> Beside | None:
    """The component that can compute the task's cross-entropy along with its own loss.

    :meth:`kdx.Scheme.knowledge_terms` takes it, and :func:`shared_task_terms` then stands for
    :meth:`kdx.Scheme.task_terms`. None where the student's logits are made whole, or no component can.

    Args:
        scheme: whose task it is.
        components: by name.
        student: a pass that captured their taps.
        teacher: likewise.
        batch: of both passes.
    """
    task, outputs = scheme.task, student.held.get(scheme.task_tap)
    if not isinstance(task, CausalLM) or type(task).__call__ is not CausalLM.__call__ or scheme.task_weight == 0:
        return None
    if type(scheme).task_terms is not Scheme.task_terms:  # the scheme has a task loss of its own
        return None
    if not isinstance(outputs, LinearLogits) or batch.targets is None:
        return None
    for name, component in components.items():
        reads = scheme.task_tap in component.student_taps
        if reads and isinstance(component, Divergence) and component.takes_beside(student, teacher):
            with blaming("the task", task):
                labels = task.labels(outputs, batch.targets)
            return name, CrossEntropyBeside(labels, (scheme.weight(name), scheme.task_weight))
    return None


def shared_task_terms(scheme: Scheme, beside: Beside, batch: Batch) -> dict[str, Mean]:
    """The weighted task loss that a component has computed along with its own."""
    loss = beside[1].loss
    assert loss is not None  # the component has run
    return {"task": Mean(loss, scheme.count(Over.TASK, batch), Over.TASK)}
