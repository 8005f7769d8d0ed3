"""Which backend runs an op: one table, one choice, and the reasons for it.

``auto`` takes the first backend of the op's row that can run the tensors. A backend asked for by name runs or raises
`kdx.errors.BackendError` with the reason; nothing falls back silently.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kdx.errors import BackendError, PluginError, UnknownNameError
from kdx.ops import _native, _plugins
from kdx.ops._declarations import BACKENDS, OPS
from kdx.ops._native import not_built
from kdx.ops._plugins import from_plugins

if TYPE_CHECKING:
    from torch import Tensor

# Choices made before, because a small kernel takes less time than choosing it.
_chosen: dict[tuple[Any, ...], tuple[str, ModuleType]] = {}


def _family(op: str) -> str:
    """The op whose backends this one runs on."""
    return (OPS[op].family or op) if op in OPS else op


def _row(op: str) -> dict[str, str]:
    """Backend -> module, those of plugins first, in the order of their names, and a plain reference last."""
    added = from_plugins()
    if op not in OPS and op not in added:
        known = ", ".join(sorted({*OPS, *added}))
        raise UnknownNameError(f"op: there is no op {op!r}; known are: {known}")
    row = {name: backend.target for name, backend in added.get(_family(op), {}).items()}
    if op in OPS:
        row |= {name: OPS[op].module(name) for name in BACKENDS}
    return {name: row[name] for name in sorted(row, key=lambda name: name == "reference")}


def forget() -> None:
    """Drops the choices made so far and the modules they were made of."""
    _module.cache_clear()
    _chosen.clear()


_native.changed.append(_chosen.clear)
_plugins.changed.append(forget)


@cache
def _module(op: str, name: str) -> ModuleType:
    backend = from_plugins().get(_family(op), {}).get(name)
    return import_module(_row(op)[name]) if backend is None else backend.load()


def _cpu(device: str, auto: bool) -> str | None:
    return not_built("cpu") or (None if device == "cpu" else f"the tensors are on {device}, not on the CPU")


def _cuda(device: str, auto: bool) -> str | None:
    if _native.overridden("cuda"):
        return None if device == "cpu" else f"the tensors are on {device}; the emulation runs on the CPU"
    return None if device == "cuda" else f"the tensors are on {device}, not on a CUDA device"


def _triton(device: str, auto: bool) -> str | None:
    if device == "cpu" and auto:
        return "the tensors are on cpu; Triton's interpreter is for tests and has to be asked for by name"
    if not _has_triton():
        return "triton is not installed (pip install triton)"
    if device == "cpu":
        return (
            None
            if os.environ.get("TRITON_INTERPRET") == "1"
            else "the tensors are on cpu, and TRITON_INTERPRET=1 is not set"
        )
    return None if device == "cuda" else f"the tensors are on {device}, not on a CUDA device"


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _reference(device: str, auto: bool) -> str | None:
    return None


_WHERE: dict[str, Callable[[str, bool], str | None]] = {
    "cpu": _cpu,
    "cuda": _cuda,
    "triton": _triton,
    "reference": _reference,
}


def _cuda_capability(tensor: Tensor) -> str | None:
    import torch

    if tensor.device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(tensor.device)
    if major < 8:
        return f"compute capability {major}.{minor} of {tensor.device} is below 8.0"
    return not_built("cuda")


def _why_not(op: str, name: str, tensors: tuple[Tensor, ...], auto: bool) -> str | None:
    row = _row(op)
    if name not in row:
        return f"not written for {op}"
    check = _WHERE.get(name)
    device = tensors[0].device.type
    reason = check(device, auto) if check else None
    if reason is None and name == "cuda":
        reason = _cuda_capability(tensors[0])
    return reason or ask(_module(op, name), *tensors)


def ask(module: ModuleType, *tensors: Tensor) -> str | None:
    """Why a backend cannot run these tensors, or None: what it says itself."""
    answer: object = module.unsupported(*tensors)
    if answer is None or isinstance(answer, str):
        return answer
    raise PluginError(
        f"{module.__name__}.unsupported: expected a reason as text, or None where the backend can run the tensors; "
        f"got {answer!r}"
    )


def select(op: str, backend: str, *tensors: Tensor) -> tuple[str, ModuleType]:
    """The backend that runs ``op`` on these tensors: its name and its module, whose ``forward`` computes the op.

    An op of a plugin calls it as kdx's own do. The choice looks at the machine, which ``torch.compile`` cannot trace: a
    function that calls it carries the decorator ``torch.compiler.allow_in_graph``, or is an operator of torch.library,
    as kdx's own are.

    Args:
        op: an op of kdx, or one that a plugin lists in its hook ``kdx_ops``.
        backend: ``"auto"``, or the name of one that has to run it.
        *tensors: what the backends are asked about, the arguments of their ``unsupported``.

    Raises:
        UnknownNameError: no op or no backend of this name.
        BackendError: the named backend cannot run here, or with ``"auto"`` none can.

    Example:
        >>> import torch, kdx
        >>> x = torch.ones(2, 3)
        >>> name, module = kdx.ops.select("pairwise_sq_dist", "reference", x, x)
        >>> name, module.forward(x, 2 * x).tolist()
        ('reference', [[3.0, 3.0], [3.0, 3.0]])

    """
    key = (op, backend, *[about for tensor in tensors for about in (tensor.device, tensor.dtype)])
    if (found := _chosen.get(key)) is not None:
        return found
    found = _select(op, backend, *tensors)
    if _is_kept(op, backend, found[0], tensors[0].device.type):
        _chosen[key] = found
    return found


def _is_kept(op: str, backend: str, name: str, device: str) -> bool:
    """Whether a choice hangs on the devices and dtypes alone, as the built-in backends look at nothing else.

    Those from outside may look at more, and Triton on a CPU looks at the environment.
    """
    asked = _row(op) if backend == "auto" else (name,)
    kept = op in OPS and all(each in BACKENDS for each in asked)
    return kept and (name != "triton" or device != "cpu")


def _select(op: str, backend: str, *tensors: Tensor) -> tuple[str, ModuleType]:
    if backend == "auto":
        for name in _row(op):
            if _why_not(op, name, tensors, auto=True) is None:
                return name, _module(op, name)
        raise BackendError(f"backend: none can run {op} here: {explain(op, *tensors)}")
    known = {"auto", *BACKENDS, *_row(op)}
    if backend not in known:
        raise UnknownNameError(f"backend: there is none named {backend!r}; known are: {', '.join(sorted(known))}")
    reason = _why_not(op, backend, tensors, auto=False)
    if reason is not None:
        raise BackendError(f"backend={backend!r} cannot run {op} here: {reason}")
    return backend, _module(op, backend)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which backend ``auto`` takes, and why not the others; as text, a line for each.

    Args:
        op: the op's name.
        backend: the choice, or ``"none"``.
        reasons: every other backend -> why it is not taken.
    """

    op: str
    backend: str
    reasons: dict[str, str]

    def __str__(self) -> str:
        """The choice in the first line, then a line for every reason."""
        return "\n".join(
            [f"{self.op}: {self.backend}", *(f"  not {name}: {why}" for name, why in self.reasons.items())]
        )


def explain(op: str, *tensors: Tensor) -> Explanation:
    """Say which backend ``auto`` takes for these tensors, and why each other one is not taken.

    Example:
        >>> import torch, kdx
        >>> x = torch.randn(4, 10)
        >>> kdx.ops.explain("softmax_kl", x, x).reasons["cuda"]
        'the tensors are on cpu, not on a CUDA device'

    """
    if not tensors:
        raise ValueError("tensors: explain needs the tensors of the call, for example explain('softmax_kl', s, t)")
    chosen = ""
    reasons: dict[str, str] = {}
    names = [name for name in _row(op) if name not in BACKENDS]
    for name in dict.fromkeys([*names, *BACKENDS] if op in OPS else _row(op)):
        try:
            reason = _why_not(op, name, tensors, auto=True)
        except PluginError as error:
            reason = str(error)
        if reason is None and not chosen:
            chosen = name
        else:
            reasons[name] = reason or f"{chosen} comes first"
    return Explanation(op, chosen or "none", reasons)


def plugin_backends() -> dict[str, str | None]:
    """``"op/backend"`` of every installed plugin -> None, or why it cannot be used anywhere; ``kdx env`` shows it."""
    found: dict[str, str | None] = {}
    for op, row in from_plugins().items():
        for name, backend in row.items():
            try:
                backend.load()
                found[f"{op}/{name}"] = None
            except PluginError as error:
                found[f"{op}/{name}"] = str(error)
    return found


def backends() -> dict[str, str | None]:
    """Each backend and why it cannot be used on this machine, or None where it can; ``kdx env`` shows it."""
    import torch

    gpu = None if torch.cuda.is_available() else "torch sees no CUDA device"
    triton = None if _has_triton() else "triton is not installed (pip install triton)"
    return {
        "cuda": not_built("cuda") or gpu,
        "triton": triton or (None if os.environ.get("TRITON_INTERPRET") == "1" else gpu),
        "cpu": not_built("cpu"),
        "reference": None,
    }
