"""Which schemes and runs a trainer of Hugging Face can be lent to."""

from __future__ import annotations

from typing import Any

from torch import nn

from kdx.capture import unwrap
from kdx.schemes.base import Scheme
from kdx.schemes.weights import Balanced
from kdx.teachers import Snapshot, Teacher

__all__ = ["check_alone", "check_scheme"]


def check_alone(trainer: Any) -> None:
    """Checks that a trainer runs one process on one device.

    Raises:
        ValueError: it does not.
    """
    args = trainer.args
    if args.world_size > 1 or args.n_gpu > 1:
        raise ValueError(
            f"DistillationMixin: the trainer runs {args.world_size} processes on {args.n_gpu} devices each, and the "
            "scheme calls the model itself, so that their gradients would not be put together; run one process on one "
            "device (CUDA_VISIBLE_DEVICES=0), or take kdx.fit, which runs on several"
        )


def check_scheme(scheme: Any, model: nn.Module) -> Scheme:
    """Checks that a scheme trains a model and nothing else.

    Raises:
        TypeError: it is no scheme.
        ValueError: it trains other parameters, or changes with what a trainer does not save.
    """
    if not isinstance(scheme, Scheme):
        raise TypeError(f"distil: expected a function that gives a scheme, such as kdx.Offline, got a {_kind(scheme)}")
    what = f"distil: {type(scheme).__name__}"
    students = [unwrap(student) for student in scheme.students.values()]
    if len(students) != 1 or students[0] is not unwrap(model):
        raise ValueError(
            f"{what} trains {' and '.join(scheme.students)}, expected the trainer's model alone: build it of the model "
            "that distil is called with; kdx.fit trains every scheme"
        )
    if not scheme.ready:
        waiting = [name for name, part in scheme.components.items() if not part.ready]
        raise ValueError(
            f"{what}: knowledge {' and '.join(map(repr, waiting))} has parameters of its own, which a trainer would "
            "neither train nor save; take kdx.fit, or knowledge without an adapter"
        )
    own = {id(each) for each in model.parameters()}
    if extra := [name for name, each in scheme.named_parameters() if each.requires_grad and id(each) not in own]:
        raise ValueError(f"{what} trains {extra[0]!r} beside the model, which a trainer would not save; take kdx.fit")
    if type(scheme).feed is not Scheme.feed:
        raise ValueError(f"{what} makes batches of its own, and a trainer takes those of the data; take kdx.fit")
    if len(scheme.phases) > 1:
        raise ValueError(f"{what} takes its steps in phases, and a trainer takes one; take kdx.fit")
    if any(isinstance(weight, Balanced) for weight in scheme.weights.values()):
        raise ValueError(f"{what}: balanced weights are measured by kdx.fit; give numbers or a schedule")
    moving = [part for part in scheme.modules() if isinstance(part, Teacher) and _moves(part)]
    if moving:
        raise ValueError(
            f"{what}: {type(moving[0]).__name__} follows the student, which a trainer would not save; take kdx.fit"
        )
    return scheme


def _moves(teacher: Teacher) -> bool:
    return isinstance(teacher, Snapshot) or type(teacher).step_end is not Teacher.step_end


def _kind(value: Any) -> str:
    return type(value).__name__
