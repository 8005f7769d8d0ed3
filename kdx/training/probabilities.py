"""Whether outputs that should be logits have already been through a softmax or a sigmoid."""

from __future__ import annotations

import torch
from torch import Tensor

from kdx.responses import Form, Responses
from kdx.schemes.base import Scheme
from kdx.schemes.task_count import logits_form, responses_of
from kdx.training.seen import Seen, forms_of

__all__ = ["are_probabilities", "check_logits"]

_AGAIN = {Form.CLASSES: "a softmax", Form.BERNOULLI: "a sigmoid"}

_NARROW = (torch.bfloat16, torch.float16, torch.float32)


def are_probabilities(outputs: Tensor, dim: int) -> bool:
    """Whether outputs are certainly probabilities of classes: rows in [0, 1] that sum to 1.

    Logits come out like that by accident only where they are one-hot or alike in every row, as those of a rule, so at
    least two different rows must hold values between 0 and 1. Log-probabilities are logits: their softmax is the
    probabilities again.

    Args:
        outputs: any float dtype, with two dimensions or more.
        dim: the axis of the classes.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 2.0, 3.0], [3.0, 1.0, 0.0]])
        >>> are_probabilities(logits.softmax(1), 1), are_probabilities(logits.log_softmax(1), 1)
        (True, False)
        >>> are_probabilities(torch.eye(3), 1), are_probabilities(torch.full((2, 4), 0.25), 1)
        (False, False)
    """
    rows = outputs.detach().movedim(dim, -1).flatten(0, -2)  # [R, C]
    if rows.shape[1] < 2 or not rows.is_floating_point() or not bool(((rows >= 0) & (rows <= 1)).all()):
        return False
    # the dtype of the softmax, whatever the outputs were converted to afterwards
    precision = next((dtype for dtype in _NARROW if torch.equal(rows.to(dtype).to(rows.dtype), rows)), rows.dtype)
    tolerance = max(4 * torch.finfo(precision).eps, 1e-6) if precision.itemsize >= 4 else torch.finfo(precision).eps
    if bool(((rows.double().sum(1) - 1).abs() > tolerance).any()):
        return False
    between = rows[(rows.amax(1) < 1) & (rows.amin(1) < rows.amax(1))]
    return len(between) > 1 and bool((between != between[0]).any())


def check_logits(scheme: Scheme, seen: Seen) -> None:
    """Checks that nothing takes the softmax of a softmax, or the sigmoid of a sigmoid.

    Args:
        scheme: whose task takes the outputs of its students.
        seen: one pass of it.

    Raises:
        ValueError: a student or a teacher gives probabilities where logits are taken; it is named, with what takes
            them.
    """
    for name, task, outputs in seen.outputs if scheme.task_weight > 0 else ():
        form = logits_form(task)
        if form and (found := _probabilities(outputs, form, responses_of(task), seen)):
            raise ValueError(
                f"the outputs of {name!r} are probabilities already ({found}), and the task loss takes logits and "
                f"would take {_AGAIN[form]}: leave it out of the model (metrics do not mind)"
            )
    for call in seen.calls:
        for form in (each for each in _AGAIN if each in forms_of(call.component)):
            for side, captured, taps in (
                ("student", call.student, call.component.student_taps),
                ("teacher", call.teacher, call.component.teacher_taps),
            ):
                read = [captured.response(tap) if tap in {*captured, *captured.held} else None for tap in taps]
                for tap, answer in zip(taps, read, strict=True):
                    if not isinstance(answer, Tensor):
                        continue
                    if found := _probabilities(answer, form, call.component.responses, seen):
                        log = " (lambda out: out.log() where there are none)" if form is Form.CLASSES else ""
                        raise ValueError(
                            f"knowledge {call.name!r} ({type(call.component).__name__}) takes {_AGAIN[form]} of what "
                            f"it reads, and {tap!r} of the {side} holds probabilities already ({found}): leave it out "
                            f"of the model, or read logits instead, as with {side}_output=lambda out: out.logits{log}"
                        )


def _probabilities(outputs: Tensor, form: Form, responses: Responses, seen: Seen) -> str | None:
    """How the outputs show that they are probabilities, None if they do not."""
    if form is Form.BERNOULLI and seen.sigmoids.gave(outputs):
        return "a sigmoid gave them"
    if form is Form.CLASSES and outputs.dim() > 1 and are_probabilities(outputs, responses.axis(outputs.shape)):
        return "all in [0, 1], and they sum to 1 over the classes"
    return None
