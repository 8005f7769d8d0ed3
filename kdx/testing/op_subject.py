"""The subject of an op's checks: the op, one of its backends, calls to try and inputs to try them on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdx.errors import BackendError
from kdx.ops import SparseTargets
from kdx.registry import default_plugins

__all__ = ["OpSubject", "OpTags", "Result", "subject_of"]

Options = Mapping[str, Any]


def draw(rows: int, columns: int, *, std: float = 1.0, gap: float = 1.0) -> tuple[Tensor, Tensor]:
    """Student and teacher ``[rows, columns]``, float64: normal numbers of spread ``std`` that are ``gap`` apart."""
    generator = torch.Generator().manual_seed(rows * 7919 + columns)
    student = std * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return student, student + gap * torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def draw_labelled(rows: int, columns: int, *, std: float = 1.0, gap: float = 1.0) -> tuple[Tensor, ...]:
    """The same and int64 labels ``[rows]``, some of them -100."""
    labels = torch.arange(rows) % columns
    labels[1::5] = -100
    return *draw(rows, columns, std=std, gap=gap), labels


@dataclass(frozen=True, kw_only=True)
class OpTags:
    """Properties of an op, and the inputs that it is tried on.

    Args:
        inputs: ``(rows, columns, *, std, gap) -> tensors`` in float64 (others keep their dtype); None draws student
            and teacher ``[rows, columns]`` of spread ``std`` that differ by numbers of spread ``gap``. Every call must
            give the same numbers.
        options: keyword arguments of the calls to try; the first one also with awkward inputs.
        columns: sizes of the last dimension.
        rows: sizes of the first.
        zero_when_equal: the value is 0, and so is its gradient, where the first two tensors are equal.
        infinities: inputs with infinities and NaN give what the reference gives.
        call: ``(op, *tensors, **options) -> value``, where the op does not take the tensors as they are; None calls it
            with them.
        constants: places of tensors that the op takes as they are, and refuses where they ask for a gradient.
        operators: ``backend -> [(operator, arguments)]`` for ``torch.library.opcheck``; None checks the operators that
            a call dispatches to.
    """

    inputs: Callable[..., tuple[Tensor, ...]] | None = None
    options: Sequence[Options] = ({},)
    columns: Sequence[int] = (1, 2, 19, 1000)
    rows: Sequence[int] = (0, 1, 2, 131)
    zero_when_equal: bool = False
    infinities: bool = True
    call: Callable[..., Tensor] | None = None
    constants: Sequence[int] = ()
    operators: Callable[[str], Sequence[tuple[Any, tuple[Any, ...]]]] | None = None


def _softmax_kl_operators(backend: str) -> list[tuple[Any, tuple[Any, ...]]]:
    student, teacher = (x.float()[..., None] for x in draw(6, 5))
    rows = torch.full((6,), 0.3), torch.arange(6) % 5, torch.full((6,), 0.4)
    op = torch.ops.kdx.softmax_kl.default
    found: list[tuple[Any, tuple[Any, ...]]] = [
        (
            op,
            (student, teacher, None, None, None, 2.0, 0, 0.5, 1.0, 0.0, 1, reduce, backend, grad),
        )
        for reduce in (True, False)
        for grad in (True, False)
    ]
    found.append((op, (student, teacher, *rows, 2.0, 2, 0.5, 1.0, 1.0, 0, True, backend, True)))
    return [*found, (torch.ops.kdx.scale_grad.default, (student[..., 0], torch.tensor(2.0), backend))]


def _rkd_operators(backend: str) -> list[tuple[Any, tuple[Any, ...]]]:
    student, teacher = (x.float() for x in draw(5, 4))
    wanted = [(True, True), (True, False), (False, False)]
    return [(torch.ops.kdx.rkd.default, (student, teacher, 1.0, 2.0, 1.0, *each, backend)) for each in wanted]


def _distance_operators(backend: str) -> list[tuple[Any, tuple[Any, ...]]]:
    student, teacher = (x.float() for x in draw(5, 4))
    return [(torch.ops.kdx.pairwise_sq_dist.default, (student, teacher, backend))]


def draw_heads(rows: int, columns: int, *, std: float = 1.0, gap: float = 1.0) -> tuple[Tensor, ...]:
    """Hidden states of a student and its head for ``columns`` classes, then those of a teacher."""
    student, teacher = draw(rows, 6, std=std, gap=gap)
    heads = draw(columns, 6, gap=gap)
    return student, heads[0], teacher, heads[1]


def _topk(op: Callable[..., Tensor], student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    """A call against the most probable classes of the teacher's logits, three at most."""
    temperature = options.get("temperature", 1.0)
    every = torch.log_softmax(teacher / temperature, -1)
    logprobs, ids = every.topk(min(3, teacher.shape[-1]), -1)
    tail = every.scatter(1, ids, -torch.inf).logsumexp(1)
    return op(student, SparseTargets(ids, logprobs, tail, temperature=temperature), **options)


def _topk_kl_operators(backend: str) -> list[tuple[Any, tuple[Any, ...]]]:
    student, teacher = (x.float() for x in draw(6, 5))
    logprobs, ids = torch.log_softmax(teacher, -1).topk(2, -1)
    known = torch.cat([logprobs, torch.log1p(-logprobs.exp().sum(1, keepdim=True))], 1)
    ones = torch.full((6,), 0.3)
    op = torch.ops.kdx.topk_kl.default
    return [
        (op, (student, ids, known, ones, *more, 5, tail, 1.0, 0, 0.5, 1.0, 1.0, reduce, backend, grad))
        for tail, more in ((1, (None, None)), (2, (None, None)), (4, (torch.arange(6) % 5, ones)))
        for reduce, grad in ((True, True), (False, False))
    ]


def _linear_kl_operators(backend: str) -> list[tuple[Any, tuple[Any, ...]]]:
    student, weight, teacher, teacher_weight = (x.float() for x in draw_heads(6, 5))
    ones, numbers = torch.full((6,), 0.3), (0.5, 1.0, 0.0, 30.0, 4, 0, 2.0, 2, 0.5, 1.0, 1.0)
    rows, bias = (ones, torch.arange(6) % 4, ones), torch.ones(5)
    op = torch.ops.kdx.linear_kl.default
    return [
        (
            op,
            (
                student,
                weight,
                own,
                teacher,
                teacher_weight,
                *[None] * 3,
                *rows,
                *numbers,
                reduce,
                backend,
                *wanted,
                apart,
            ),
        )
        for own, reduce, wanted, apart in (
            (None, False, (False, False, False), False),
            (None, True, (True, False, False), False),
            (bias, True, (True, True, True), True),
        )
    ]


_RELATIONAL = OpTags(
    columns=(1, 3, 64), rows=(0, 1, 2, 3, 33), zero_when_equal=True, operators=_rkd_operators, infinities=False
)
OWN = {
    "softmax_kl": OpTags(
        options=(
            {"temperature": 2.0, "reduction": "none"},
            {"temperature": 4.0},
            {"divergence": "reverse"},
            {"divergence": "jsd", "beta": 0.3, "reduction": "mean"},
            {"divergence": "reverse", "skew": 0.3},
        ),
        zero_when_equal=True,
        operators=_softmax_kl_operators,
    ),
    "kd_loss": OpTags(
        inputs=draw_labelled,
        options=({"reduction": "none"}, {"temperature": 2.0, "alpha": 0.5}),
        operators=_softmax_kl_operators,
    ),
    "linear_kl": OpTags(
        inputs=draw_heads,
        options=({"reduction": "none"}, {"temperature": 2.0}, {"divergence": "jsd", "student_softcap": 4.0}),
        rows=(0, 1, 2, 33),
        infinities=False,
        constants=(2, 3),
        operators=_linear_kl_operators,
    ),
    "topk_kl": OpTags(
        options=(
            {"reduction": "none"},
            {"temperature": 2.0},
            {"divergence": "jsd"},
            {"tail": "drop"},
            {"tail": "even"},
        ),
        infinities=False,
        call=_topk,
        constants=(1,),
        operators=_topk_kl_operators,
    ),
    "rkd": _RELATIONAL,
    "rkd_distance": _RELATIONAL,
    "rkd_angle": _RELATIONAL,
    "pairwise_sq_dist": OpTags(columns=(1, 3, 64), operators=_distance_operators),
}
"""The tags of kdx's own ops."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a call: its value and the gradients of its sum, None for tensors without one."""

    value: Tensor
    gradients: tuple[Tensor | None, ...]

    def tensors(self) -> list[tuple[str, Tensor]]:
        """The value and the gradients that there are, with the names that messages give them."""
        names = (f"the gradient of tensor {n}" for n in range(len(self.gradients)))
        found = [("the value", self.value), *zip(names, self.gradients, strict=True)]
        return [(name, tensor) for name, tensor in found if tensor is not None]


@dataclass(frozen=True, slots=True)
class OpSubject:
    """An op, the backend that is checked, and how.

    Args:
        name: the op's name.
        function: the op.
        backend: the backend's name.
        device: where the tensors are.
        tags: its properties, and the inputs that it is tried on.
    """

    name: str
    function: Callable[..., Tensor]
    backend: str
    device: str
    tags: OpTags = field(repr=False)

    def inputs(self, rows: int = 5, columns: int = 19, *, std: float = 1.0, gap: float = 1.0) -> tuple[Tensor, ...]:
        """Tensors to call it with, in float64, on the device."""
        make = self.tags.inputs or draw
        return tuple(tensor.to(self.device) for tensor in make(rows, columns, std=std, gap=gap))

    def why_not(self, dtype: torch.dtype) -> str | None:
        """Why the backend cannot run such tensors, or None."""
        try:
            self.call(cast(self.inputs(2, 3), dtype))
        except BackendError as error:
            return str(error)
        return None

    def run(self, tensors: Sequence[Tensor], options: Options | None = None, *, backend: str | None = None) -> Result:
        """Value and gradients of one call on copies of the tensors."""
        leaves = self.leaves(tensors)
        value = self.call(leaves, options, backend=backend)
        wanted = [tensor for tensor in leaves if tensor.requires_grad]
        found = iter(torch.autograd.grad(value.sum(), wanted, allow_unused=True, materialize_grads=True))
        return Result(value.detach(), tuple(next(found) if tensor.requires_grad else None for tensor in leaves))

    def leaves(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies in the same memory layout that ask for a gradient, where they can have one."""
        return [
            x.detach() if place in self.tags.constants else x.detach().requires_grad_(x.is_floating_point())
            for place, x in enumerate(tensors)
        ]

    def call(self, tensors: Sequence[Tensor], options: Options | None = None, *, backend: str | None = None) -> Tensor:
        """One call, with its graph."""
        chosen = self.tags.options[0] if options is None else options
        function = self.function if self.tags.call is None else partial(self.tags.call, self.function)
        value: Tensor = function(*tensors, **chosen, backend=backend or self.backend)
        return value


def cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Floating-point tensors in another dtype, the others as they are."""
    return tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors)


def subject_of(op: str | Callable[..., Tensor], backend: str, device: str, tags: OpTags | None) -> OpSubject:
    """The op by its name, or given as it is."""
    name = op if isinstance(op, str) else getattr(op, "__name__", "")
    function = default_plugins().load("op", name)
    if not callable(function):
        raise TypeError(f"op: expected the name of an op, got {name!r}, which is a backend; give backend= too")
    return OpSubject(name, function, backend, device, tags or OWN.get(name) or OpTags())
