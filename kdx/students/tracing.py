"""Following the channels of a model while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from kdx.capture import call, clean_name
from kdx.students.calls import plainly, tensors_in
from kdx.students.rules import RULES
from kdx.students.trace import Trace

__all__ = ["trace_channels"]


class _Following(TorchFunctionMode):
    """Applies the rule of every torch function that is called while it is active."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls the function, then applies its rule."""
        kwargs = kwargs or {}
        read = list(tensors_in((args, kwargs)))
        result = func(*args, **kwargs)
        known = [tensor for tensor in read if self.trace.knows(tensor)]
        if known and (next(tensors_in(result), None) is not None or func is Tensor.__setitem__):
            name = _short_name(func)
            rule = RULES.get(name)
            reason, handled = f"{name} mixes or fixes the channels it reads", False
            if self.trace.pinned_by():
                reason = "its code holds sizes that do not follow when channels are dropped"
            elif rule is not None:
                try:
                    handled = rule(self.trace, result, *args, **kwargs)
                except TypeError:  # called in a way the rule does not know
                    handled = False
            for tensor in known if not handled else ():
                self.trace.fix_tensor(tensor, reason)
        return result


def trace_channels(model: nn.Module, inputs: Any, pinned: Iterable[str] = ()) -> Trace:
    """Runs a model once, in evaluation mode, and follows its channels through every torch function that it calls.

    What a function does to channels says its rule in :data:`kdx.students.rules.RULES`; a function without a rule fixes
    all channels that it reads. Nothing is traced symbolically, so control flow, shape checks and mappings of inputs are
    no obstacle; what did not run on the example is not seen.

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
        with _Following(trace):
            result = call(model, inputs)
    for tensor in tensors_in(result):
        trace.fix_tensor(tensor)
    return trace


def _short_name(func: Callable[..., Any]) -> str:
    name = str(getattr(func, "__name__", func))
    return (resolve_name(func) or name).split(".")[-2] if name == "__get__" else name
