"""Checks of a kernel: a backend of an op against the op's reference in float64."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from kdx.ops import _dispatch
from kdx.testing.check import Check, CheckFailed, bind, fail, require, run_all
from kdx.testing.op_inputs import AWKWARD, LAYOUTS
from kdx.testing.op_subject import OpSubject, OpTags, Options, Result, cast, subject_of

__all__ = ["check_op", "op_checks"]

REFERENCE = "reference"
# A backend may be this many times as far from float64 as the reference in the same dtype is, or this far in relation
# to the size of the result, whichever is more.
FACTOR = 16.0
VALUE, GRADIENT = 1e-5, 1e-5


def check_op(
    op: str | Callable[..., Tensor],
    *,
    backend: str = "auto",
    device: str = "cpu",
    tags: OpTags | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> None:
    """Runs every check of an op's backend.

    Args:
        op: an op by name, kdx's own or one that a plugin lists in its hook ``kdx_ops``. It is called as
            ``op(*tensors, **options, backend=...)`` and has a backend ``"reference"``.
        backend: the backend that is checked; ``"auto"`` checks what a user gets.
        device: where the tensors are.
        tags: on what it is tried; None knows kdx's own ops and tries others on student and teacher ``[N, C]``.
        expected_failures: check name -> why it is known not to hold. One that holds after all is an error.

    Raises:
        CheckFailed: a check does not hold; the message names each and what it found.
        BackendError: the backend cannot run on this machine at all.

    Example:
        >>> check_op("pairwise_sq_dist", backend="reference")
    """
    run_all(op_checks(op, backend=backend, device=device, tags=tags, expected_failures=expected_failures))


def op_checks(
    op: str | Callable[..., Tensor],
    *,
    backend: str = "auto",
    device: str = "cpu",
    tags: OpTags | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[Check]:
    """The checks of an op's backend."""
    subject = subject_of(op, backend, device, tags)
    functions = list(_applicable(subject))
    return bind(f"{subject.name}, backend {backend!r},", functions, subject, expected_failures=expected_failures)


def _applicable(op: OpSubject) -> Iterator[Callable[[OpSubject], None]]:
    yield check_answers
    yield check_values
    yield check_half_precision
    yield check_sizes
    yield check_layouts
    if op.tags.infinities:
        yield check_infinities
    if op.tags.zero_when_equal:
        yield check_zero_when_equal
    yield check_backward_twice
    yield check_inputs_unchanged
    yield check_poisoned_outputs
    yield check_repeatable
    yield check_gradient_is_right
    yield check_operators
    yield check_compiles


def check_answers(op: OpSubject) -> None:
    """The backend says for every dtype whether it can run it, as None or a reason, and runs at least one of them."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    reasons = {dtype: op.why_not(dtype) for dtype in dtypes}
    require(None in reasons.values(), f"it runs no dtype on {op.device}: {reasons[torch.float32]}")
    with _answers() as answers:
        for dtype in dtypes:
            op.why_not(dtype)
    for answer in answers:
        sound = answer is None or (isinstance(answer, str) and bool(answer))
        require(sound, f"unsupported() answers {answer!r}, not None or a reason")


def check_values(op: OpSubject) -> None:
    """float32 values and gradients are those of float64 at every spread of the inputs, for close and distant pairs."""
    if op.why_not(torch.float32) is not None:
        return
    for std in (0.1, 3.0, 30.0):
        for gap in (1.0, 1e-2, 1e-4):
            for options in op.tags.options:
                tensors = cast(op.inputs(9, op.tags.columns[-1], std=std, gap=gap), torch.float32)
                _compare(op, tensors, options, f"std {std}, gap {gap}")
    for options in op.tags.options:
        found = op.run(cast(op.inputs(9, op.tags.columns[-1], std=300.0), torch.float32), options)
        for name, tensor in found.tensors():
            require(bool(tensor.isfinite().all()), f"std 300, {dict(options)}: {name} is not finite")


def check_half_precision(op: OpSubject) -> None:
    """bfloat16 and float16 give the float64 values of the rounded inputs, and gradients that are rounded once, in the
    dtypes of the reference.
    """
    for dtype in (torch.bfloat16, torch.float16):
        if op.why_not(dtype) is None:
            for options in op.tags.options:
                tensors = cast(op.inputs(9, op.tags.columns[-1], std=3.0, gap=0.1), dtype)
                _compare(op, tensors, options, str(dtype))


def check_sizes(op: OpSubject) -> None:
    """Any number of rows, none and one among them, and of columns gives the right values."""
    dtype = _dtype(op)
    for rows, columns in [(n, op.tags.columns[-2]) for n in op.tags.rows] + [(3, c) for c in op.tags.columns]:
        for options in op.tags.options:
            tensors = cast(op.inputs(rows, columns), dtype)
            _compare(op, tensors, options, f"[{rows}, {columns}]", floor=torch.finfo(dtype).eps)


def check_layouts(op: OpSubject) -> None:
    """Strides, offsets and transposed memory change nothing."""
    tensors = cast(op.inputs(), _dtype(op))
    for layout, change in LAYOUTS.items():
        for number in range(len(tensors)):
            if tensors[number].dim() == 2:
                changed = [change(x) if n == number else x for n, x in enumerate(tensors)]
                _compare(op, changed, op.tags.options[0], f"tensor {number} {layout}")


def check_infinities(op: OpSubject) -> None:
    """-inf, inf and NaN in the inputs give inf, NaN and finite numbers where the reference gives them."""
    dtype = _dtype(op)
    for case, places in AWKWARD.items():
        tensors = [x.clone() for x in cast(op.inputs(4, 19), dtype)]
        for number, row, column, value in places:
            tensors[number][row, column] = value
        found = op.run(tensors)
        truth = op.run(cast(tensors, torch.float64), backend=REFERENCE)
        for (name, one), (_, other) in zip(found.tensors(), truth.tensors(), strict=True):
            same = torch.allclose(one.double(), other, rtol=_half(dtype) or 1e-4, atol=1e-6, equal_nan=True)
            require(same, f"{case}: {name} is not what the reference gives (finite, infinite and NaN where it is)")


def check_zero_when_equal(op: OpSubject) -> None:
    """Where the first two tensors are equal, value and gradient are 0."""
    first, _, *rest = cast(op.inputs(7, 19), _dtype(op))
    for options in op.tags.options:
        found = op.run([first, first.clone(), *rest], options)
        for name, tensor in found.tensors():
            require(not tensor.numel() or tensor.abs().max().item() <= 1e-6, f"{dict(options)}: {name} is not 0")


def check_backward_twice(op: OpSubject) -> None:
    """A second backward pass gives the same gradients, and an upstream gradient scales them."""
    tensors = op.leaves(cast(op.inputs(), _dtype(op)))
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    for options in op.tags.options:
        total = op.call(tensors, options).sum()
        passes = [torch.autograd.grad(total * scale, wanted, retain_graph=True) for scale in (0.25, 1.0, 1.0)]
        for number, (quarter, first, second) in enumerate(zip(*passes, strict=True)):
            require(torch.equal(first, second), f"the gradient of tensor {number} is another one the second time")
            close = torch.allclose(4 * quarter, first, rtol=_half(_dtype(op)) or 1e-6, atol=1e-12)
            require(close, f"the gradient of tensor {number} is not scaled by the upstream gradient")


def check_inputs_unchanged(op: OpSubject) -> None:
    """No input is changed, neither forward nor backward."""
    tensors = cast(op.inputs(), _dtype(op))
    before = [tensor.clone() for tensor in tensors]
    for options in op.tags.options:
        op.run(tensors, options)
        for number, (now, kept) in enumerate(zip(tensors, before, strict=True)):
            require(torch.equal(now, kept), f"tensor {number} was changed in place")


def check_poisoned_outputs(op: OpSubject) -> None:
    """Every entry of the outputs is written: memory full of NaN gives the same bits."""
    for rows in (5, op.tags.rows[-1]):
        tensors = cast(op.inputs(rows), _dtype(op))
        for options in op.tags.options:
            expected = op.run(tensors, options)
            with _poison():
                found = op.run(tensors, options)
            _same_bits(found, expected, f"[{rows}, 19] with poisoned memory")


def check_repeatable(op: OpSubject) -> None:
    """Ten runs, and runs on 1, 2 and 3 threads, give the same bits."""
    tensors = cast(op.inputs(op.tags.rows[-1], op.tags.columns[-1]), _dtype(op))
    threads = torch.get_num_threads()
    try:
        for each, options in enumerate(op.tags.options):
            expected = op.run(tensors, options)
            for number in (*(threads,) * 9, *((1, 2, 3) if each == 0 else ())):
                torch.set_num_threads(number)
                _same_bits(op.run(tensors, options), expected, f"{dict(options)} on {number} threads")
    finally:
        torch.set_num_threads(threads)


def check_gradient_is_right(op: OpSubject) -> None:
    """In float64 the gradients of the backend, or of the reference if it has no float64, are those of the values."""
    backend = op.backend if op.why_not(torch.float64) is None else REFERENCE
    tensors = op.leaves(op.inputs(4, 5))
    for options in op.tags.options:
        try:
            gradcheck(lambda *x, o=options: op.call(x, o, backend=backend), tensors)
        except GradcheckError as error:
            fail(f"{dict(options)}: torch.autograd.gradcheck: {' '.join(str(error).split())[:300]}")


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    """Writes down the operators that are not torch's own, with their arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace not in ("aten", "prim", "prims", "profiler", "inductor") and not kwargs:
            self.seen.append((func, tuple(x.detach() if isinstance(x, Tensor) else x for x in args)))
        return func(*args, **(kwargs or {}))


def check_operators(op: OpSubject) -> None:
    """Every custom operator behind it passes ``torch.library.opcheck``: schema, fake and aliases are right."""
    if op.tags.operators is not None:
        found = list(op.tags.operators(op.backend))
    else:
        with _Operators() as mode:
            op.run(cast(op.inputs(), _dtype(op)))
        found = mode.seen
    for operator, arguments in found:
        moved = tuple(x.to(op.device, _dtype(op)) if _is_float(x) else x for x in arguments)
        torch.library.opcheck(operator, moved)


def check_compiles(op: OpSubject) -> None:
    """It compiles into one graph (``fullgraph=True``), as the first call of a process too, with the same results."""
    tensors = cast(op.inputs(), _dtype(op))
    expected = op.run(tensors)
    torch.compiler.reset()
    _dispatch.forget()  # as in a process that has called no op yet
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)  # by torch's own tracer
        compiled = torch.compile(op.call, fullgraph=True, backend="aot_eager")
        leaves = op.leaves(tensors)
        try:
            value = compiled(leaves)
        except Exception as error:
            hint = "has the op the decorator torch.compiler.allow_in_graph, and is its kernel one of torch.library?"
            raise CheckFailed(f"{type(error).__name__}: {' '.join(str(error).split())[:400]}; {hint}") from error
        wanted = [tensor for tensor in leaves if tensor.requires_grad]
        gradients = iter(torch.autograd.grad(value.sum(), wanted, allow_unused=True, materialize_grads=True))
    found = Result(value.detach(), tuple(next(gradients) if x.requires_grad else None for x in leaves))
    for (name, one), (_, other) in zip(found.tensors(), expected.tensors(), strict=True):
        require(torch.allclose(one, other, rtol=1e-5, atol=1e-7), f"compiled, {name} differs")


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _dtype(op: OpSubject) -> torch.dtype:
    """float32, or the first dtype that the backend can run."""
    return next(d for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64) if op.why_not(d) is None)


def _half(dtype: torch.dtype) -> float:
    return 2 * torch.finfo(dtype).eps if dtype in (torch.bfloat16, torch.float16) else 0.0


def _compare(op: OpSubject, tensors: Any, options: Options, where: str, floor: float = 0.0) -> None:
    """Fails unless value and gradients are as close to float64 as the reference in the same dtype, or nearly so.

    ``floor`` is an error per entry that counts for nothing: with two columns a gradient may be far smaller than the
    numbers near 1 that it is the difference of.
    """
    found = op.run(tensors, options)
    truth = op.run(cast(tensors, torch.float64), options, backend=REFERENCE)
    narrow = op.run(tensors, options, backend=REFERENCE)
    for number, (one, exact, reference) in enumerate(
        zip(found.tensors(), truth.tensors(), narrow.tensors(), strict=True)
    ):
        (name, value), wanted = one, exact[1]
        require(value.shape == wanted.shape, f"{where}, {dict(options)}: {name} has shape {list(value.shape)}")
        dtype = reference[1].dtype
        require(value.dtype == dtype, f"{where}, {dict(options)}: {name} is {value.dtype}, the reference's {dtype}")
        relative = (VALUE if number == 0 else GRADIENT) if not _half(dtype) else _half(dtype)
        if dtype == torch.float64:
            relative = 1e-9
        near = FACTOR * (reference[1].double() - wanted).norm().item()
        budget = max(near, relative * wanted.norm().item(), floor * math.sqrt(wanted.numel()))
        error = (value.double() - wanted).norm().item()
        require(
            error <= budget,
            f"{where}, {dict(options)}: {name} is off by {error:.3g} (in norm), the budget is {budget:.3g}; float64 "
            f"has the norm {wanted.norm().item():.6g}",
        )


def _same_bits(found: Result, expected: Result, where: str) -> None:
    for (name, one), (_, other) in zip(found.tensors(), expected.tensors(), strict=True):
        same = torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
        require(same, f"{where}: {name} is not the same")


@contextmanager
def _answers() -> Iterator[list[object]]:
    """Collects the backends' answers to ``unsupported`` meanwhile."""
    answers: list[object] = []
    original = _dispatch.ask

    def ask(module: Any, *tensors: Tensor) -> str | None:
        answer = original(module, *tensors)
        answers.append(answer)
        return answer

    _dispatch.forget()
    _dispatch.ask = ask
    try:
        yield answers
    finally:
        _dispatch.ask = original
        _dispatch.forget()


@contextmanager
def _poison() -> Iterator[None]:
    """Fills what ``torch.empty*`` hands out with NaN."""
    names = ("empty", "empty_like", "empty_strided")
    makers = {name: getattr(torch, name) for name in names}

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def maker(*args: Any, **options: Any) -> Tensor:
            out = make(*args, **options)
            return out.fill_(math.nan) if out.dtype.is_floating_point else out

        return maker

    try:
        for name, make in makers.items():
            setattr(torch, name, poisoned(make))
        yield
    finally:
        for name, make in makers.items():
            setattr(torch, name, make)
