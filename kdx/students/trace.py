"""Which channels of a model belong together, found by watching it run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from kdx.capture import call, clean_name
from kdx.students.calls import plainly, tensors_in
from kdx.students.channels import Attention, Channels, Ids, Labels
from kdx.students.rules import RULES

__all__ = ["Kept", "Trace", "trace_channels"]


@dataclass(frozen=True, slots=True)
class Kept:
    """Channels that cannot be dropped, and why.

    Args:
        module: name of the module that runs the operation.
        reason: the operation and what about it forbids.
    """

    module: str
    reason: str


@dataclass(eq=False)
class Trace(TorchFunctionMode):
    """Follows channels through every torch function that a model calls on one example.

    Weights get ids for their channels when they are first used. What a function does to channels says its rule in
    :data:`kdx.students.rules.RULES`; a function without a rule fixes all channels that it reads. Nothing is traced
    symbolically, so control flow, shape checks and mappings of inputs are no obstacle; what did not run on the example
    is not seen.

    Args:
        names: id of a weight (parameter or buffer) -> its names, several if it is tied.
        weights: id of a weight -> itself.
        pinned: modules that keep all channels they read and make.
        channels: which ids belong together.
        labels: id of a tensor -> itself, kept alive, and the ids along its dimensions.
        kept: what could not be dropped, and why.
        attention: every ``nn.MultiheadAttention`` that ran.
        pads: module that pads channels -> ids of those before and after.
        running: modules that run now, the innermost last.
    """

    names: dict[int, list[str]]
    weights: dict[int, Tensor]
    pinned: frozenset[str] = frozenset()
    channels: Channels = field(default_factory=Channels)
    labels: dict[int, tuple[Tensor, Labels]] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)
    attention: list[Attention] = field(default_factory=list)
    pads: dict[str, tuple[Ids, Ids]] = field(default_factory=dict)
    running: list[tuple[str, nn.Module]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls the function, then applies its rule."""
        kwargs = kwargs or {}
        read = list(tensors_in((args, kwargs)))
        result = func(*args, **kwargs)
        known = [tensor for tensor in read if self._known(tensor)]
        if known and (next(tensors_in(result), None) is not None or func is Tensor.__setitem__):
            name = _short_name(func)
            rule = RULES.get(name)
            reason, handled = f"{name} mixes or fixes the channels it reads", False
            if self._pinned():
                reason = "its code holds sizes that do not follow when channels are dropped"
            elif rule is not None:
                try:
                    handled = rule(self, result, *args, **kwargs)
                except TypeError:  # called in a way the rule does not know
                    handled = False
            for tensor in known if not handled else ():
                self.fix_tensor(tensor, reason)
        return result

    def of(self, tensor: Any) -> Labels:
        """The labels of a tensor; a weight's are made when it is first seen."""
        if id(tensor) in self.labels:
            return self.labels[id(tensor)][1]
        if id(tensor) in self.weights:
            self.labels[id(tensor)] = tensor, [self.channels.new(size) for size in tensor.shape]
            return self.labels[id(tensor)][1]
        return [None] * tensor.dim()

    def set(self, tensor: Tensor, labels: Labels) -> bool:
        """Labels a result; False if the labels do not fit it, so that a rule can end with this."""
        sizes = [size if ids is None else len(ids) for ids, size in zip(labels, tensor.shape, strict=False)]
        if sizes != list(tensor.shape) or len(labels) != tensor.dim():
            return False
        if any(ids is not None for ids in labels):
            self.labels[id(tensor)] = tensor, labels
        return True

    def fix(self, ids: Ids | None, reason: str | None = None) -> None:
        """Fixes channels; a reason is written down if they were free."""
        if ids is not None and self.channels.fix(ids) and reason:
            self.note(reason)

    def fix_tensor(self, tensor: Tensor, reason: str | None = None) -> None:
        """Fixes all channels of a tensor."""
        for ids in self.of(tensor):
            self.fix(ids, reason)

    def match(self, reason: str | None, *labels: Ids | None) -> None:
        """Joins dimensions that have to stay equal."""
        if not self.channels.match(labels) and reason:
            self.note(reason)

    def note(self, reason: str) -> None:
        """Writes down why the running module keeps its channels."""
        name, module = self._pinned() or (self.running[-1] if self.running else ("", None))
        what = f"{name or 'the model'} ({type(module).__name__})" if module is not None else "the model"
        entry = Kept(what, reason)
        if entry not in self.kept:
            self.kept.append(entry)

    @property
    def module(self) -> nn.Module | None:
        """The innermost module that runs."""
        return self.running[-1][1] if self.running else None

    def watched(self) -> Iterator[tuple[list[str], Tensor, Labels]]:
        """Every weight that ran: its names, itself, its labels."""
        for key, tensor in self.weights.items():
            if key in self.labels:
                yield self.names[key], tensor, self.labels[key][1]

    def _pinned(self) -> tuple[str, nn.Module] | None:
        return next((entry for entry in self.running if entry[0] in self.pinned), None)

    def _known(self, tensor: Tensor) -> bool:
        return id(tensor) in self.labels or id(tensor) in self.weights


def trace_channels(model: nn.Module, inputs: Any, pinned: Iterable[str] = ()) -> Trace:
    """Runs a model once, in evaluation mode, and follows its channels.

    Args:
        model: any module on one device; nothing about it changes.
        inputs: what it takes, see :class:`kdx.Batch`; two samples or more, so that no dimension is 1 by chance.
        pinned: names of modules that keep all channels they read and make.
    """
    names: dict[int, list[str]] = {}
    weights: dict[int, Tensor] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        if tensor.is_floating_point() and tensor.dim():
            names.setdefault(id(tensor), []).append(clean_name(name))
            weights[id(tensor)] = tensor
    trace = Trace(names, weights, frozenset(pinned))
    with ExitStack() as stack:
        for name, module in model.named_modules():
            entry = (clean_name(name), module)
            before = module.register_forward_pre_hook(lambda *_, entry=entry: trace.running.append(entry))
            after = module.register_forward_hook(lambda *_: trace.running.pop() and None, always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        stack.enter_context(plainly(model))
        with trace:
            result = call(model, inputs)
    for tensor in tensors_in(result):
        trace.fix_tensor(tensor)
    return trace


def _short_name(func: Callable[..., Any]) -> str:
    name = str(getattr(func, "__name__", func))
    return (resolve_name(func) or name).split(".")[-2] if name == "__get__" else name
