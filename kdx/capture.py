"""Taps: the outputs of named modules, taken while a model runs."""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdx.beside_inputs import beside_inputs, call_names
from kdx.blame import blaming
from kdx.captured import LOGITS, Captured, Held, Provenance
from kdx.errors import CaptureError, nearest
from kdx.evidence import Evidence
from kdx.head import Head
from kdx.items import ITEMS, item_of
from kdx.layout import Layout, UnknownLayout
from kdx.projections import check_attention, projections_of
from kdx.tap_aliases import aliases_of
from kdx.wrapped import clean_name, unwrap

__all__ = [
    "LOGITS",
    "Captured",
    "Held",
    "Output",
    "Provenance",
    "Taps",
    "call",
    "clean_name",
    "hooks_removed",
    "logits_of",
    "reader",
    "reading",
    "unwrap",
]

Output = Callable[[Any], Tensor] | str | Head | None
"""The way to the logits in what a model returns: a function, the path of an item as ``"[1][0]"``, None: as usual; or a
:class:`kdx.Head`, with which they are not made whole."""

_TAP = re.compile(r"(?P<module>[^:\[\]]+)(?P<end>:input|:qkv)?(?P<item>" + ITEMS + r")?(?P<affine>:affine)?")
_OF_DTYPES = re.compile(r"dtype|should be the same|scalar type|not implemented for", re.IGNORECASE)
_GLOB = re.compile(r"[*?]")


def call(model: nn.Module, inputs: Any, beside: Mapping[str, Any] | None = None) -> Any:
    """Runs a model on a tensor, a tuple of arguments or a mapping of keyword arguments.

    Args:
        model: any model.
        inputs: what it is run on.
        beside: further keyword arguments; None: those that a model of Hugging Face is to be called with, without a
            cache (:func:`kdx.beside_inputs.beside_inputs`).

    Raises:
        TypeError: it fails on the dtype of its inputs, as of images of bytes; the message says what to do.
    """
    if beside is None:
        beside = beside_inputs(call_names(unwrap(model)), inputs)
    if torch.compiler.is_compiling():
        return _call(model, inputs, beside)
    try:
        return _call(model, inputs, beside)
    except RuntimeError as error:
        if _OF_DTYPES.search(str(error)) and (misfit := _misfit(model, inputs)):
            raise TypeError(f"{misfit} (torch: {str(error).splitlines()[0]})") from error
        raise


def _misfit(model: nn.Module, inputs: Any) -> str | None:
    """How the dtypes of inputs and parameters differ, and what to do."""
    own = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    items = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple | list) else [inputs]
    given = [item.dtype for item in items if isinstance(item, Tensor)]
    shown = ", ".join(sorted(map(str, own)))
    for dtype in given:
        if dtype.is_floating_point and own and dtype not in own:
            wanted = str(next(iter(own)))
            return f"inputs are {dtype}, and the parameters {shown}; give inputs.to({wanted}), or model.to({dtype})"
    for dtype in given:
        if not dtype.is_floating_point and not dtype.is_complex:
            return (
                f"inputs are {dtype}, and the model computes in {shown or 'floating point'}; give floats, images of "
                "bytes as images.float() / 255"
            )
    return None


def _call(model: nn.Module, inputs: Any, beside: Mapping[str, Any]) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs, **beside)
    if isinstance(inputs, tuple | list):
        return model(*inputs, **beside)
    return model(inputs, **beside)


def logits_of(result: Any) -> Tensor:
    """The logits in what a model returned: a tensor, ``.logits`` or ``["logits"]``.

    Raises:
        CaptureError: if there is none; names ``output=`` as the way out.
    """
    if (found := _logits_in(result)) is not None:
        return found
    raise CaptureError(
        f"the model returned {type(result).__name__} without logits; pass output=, a callable that takes what "
        "the model returns and gives the logits tensor, or the path of an item, as '[1][0]'; for several heads, each "
        "with targets of its own, give the task kdx.tasks.Heads"
    )


def _logits_in(result: Any) -> Tensor | None:
    if isinstance(result, Tensor):
        return result
    found = result.get(LOGITS) if isinstance(result, Mapping) else getattr(result, LOGITS, None)
    return found if isinstance(found, Tensor) else None


class Taps:
    """Captures module outputs of one model; calling it runs the model.

    A tap is a module name as in ``model.named_modules()`` (``layer3.1.conv2``), with these forms:

    - ``logits``: the model's output; ``logits[depth]``: one item of all that it returns;
    - ``blocks.*.attn``: a glob, ``*`` and ``?`` within one level, ``**`` over any number of levels;
    - ``fc:input``: what enters the module instead of what leaves it;
    - ``blocks.3.self_attn:qkv``: queries, keys and values side by side, ``[N, L, 3 D]``, of a
      :class:`torch.nn.MultiheadAttention` that attends to its own sequence;
    - ``encoder.layer.3[1]``, ``[name]``, ``detect[1][0]``: one item of a module that returns a tuple, a mapping or an
      object with attributes, nested as it may be; digits that are a key are quoted, ``backbone['0']``; without it the
      first tensor of a tuple is taken;
    - ``bn1:affine``, ``relu:input:affine``: not the tensor there but weight and bias, ``[2, C]``, of the BatchNorm that
      ran last before it, the tapped one itself included.

    A module that runs several times in one forward pass gives its last output.

    The hooks are on the model only while a call runs, so that nothing of kdx stays on it. Only where ``torch.compile``
    traces a call they stay from then on, for parts of the model that it runs outside its graph; :func:`hooks_removed`
    takes them off, as :func:`kdx.fit` does at its end.

    Args:
        model: any ``nn.Module``; wrappers of DDP and torch.compile are looked through.
        names: taps to capture. A model without logits, as one with several heads, needs ``names`` without ``logits``.
        output: gets what the model returns and gives the logits, or names the item that they are, as ``"[1][0]"``; only
            for models whose output is neither a tensor nor has ``logits``. A :class:`kdx.Head` says what logits are
            made of: the tap ``logits`` is then :class:`kdx.LinearLogits`, which ``captured.response`` gives.

    Raises:
        CaptureError: a name matches no module (the near ones are listed), the model is already compiled, or the head's
            layer is not a plain linear one; in a call, a tapped module did not run, an operation in place overwrote
            what it gave, or the model's own logits are not those of the head.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Iterable[str] = (LOGITS,),
        *,
        output: Output = None,
    ) -> None:
        self.model = model
        self.head = output if isinstance(output, Head) else None
        """The head that the logits are held as, None where they are made."""
        self.output = reader(output) if isinstance(output, str) else None if isinstance(output, Head) else output
        self._items: dict[str, str] = {}
        self.patterns: dict[str, tuple[str, ...]] = {}
        self._values: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._active = False
        self._aliases: dict[str, str] = {}
        self._hooks: dict[str, Callable[[], Any]] = {}
        self._handles: list[Any] = []
        self._norm: nn.Module | None = None
        self._layouts: dict[str, Layout | UnknownLayout] = {}
        self._names = call_names(unwrap(model))
        self._sparing = False
        self._whole = True
        self._layer: nn.Linear | None = None
        self._entering = LOGITS
        self._checked_head = False
        if self.head is not None:
            self._layer = self.head.layer_of(model)
            self._entering = self._one(self.head.hidden)
        self.add(names)

    @property
    def held_taps(self) -> frozenset[str]:
        """The taps whose tensors are never made: the logits, where a head says what they are made of."""
        return frozenset() if self.head is None else frozenset({LOGITS})

    def add(self, names: Iterable[str]) -> None:
        """Captures more taps from now on."""
        for tap in names:
            if tap not in self.patterns:
                self.patterns[tap] = (LOGITS,) if tap == LOGITS else self._item(tap) or self._resolve(tap)
        self._whole = self._reads_logits()

    def _one(self, tap: str) -> str:
        """Captures the hidden states that enter the head, a tap of one module."""
        names = self._resolve(tap)
        if len(names) > 1:
            raise CaptureError(
                f"the head's hidden states {tap!r} are {len(names)} taps; name one of {', '.join(names)}"
            )
        return names[0]

    def spare_logits(self) -> None:
        """Says that nothing reads the logits, unless their tap is added later.

        A causal model of Hugging Face then computes them at the last place alone (``logits_to_keep=1``), which for a
        large vocabulary is most of its memory, and they are not captured; other models run as ever.
        """
        self.patterns.pop(LOGITS, None)
        self._sparing = True
        self._whole = self._reads_logits()

    def _reads_logits(self) -> bool:
        """Whether the logits of all places are wanted: as such, in what is made of them, or in a tap on the head."""
        tapped = [name for names in self.patterns.values() for name in names]
        if self.head is not None:
            head: Any = self._layer
            tapped.append(self._entering)
        else:
            if not self._sparing or LOGITS in self.patterns or self.output is not None:
                return True
            head = getattr(unwrap(self.model), "get_output_embeddings", lambda: None)()
        if self._items:
            return True
        modules = {clean_name(name) for name, module in unwrap(self.model).named_modules() if module is head}
        return head is None or any(re.split(r"[:\[]", name)[0] in modules for name in tapped)

    def __call__(self, inputs: Any) -> Captured:
        """Runs the model and returns what the taps saw, with their graph.

        Raises:
            CaptureError: a tapped module did not run, or what it gave was overwritten.
        """
        self._values, self._versions, self._norm = {}, {}, None
        evidence = self._evidence()
        beside = beside_inputs(self._names, inputs, logits=self._whole)
        if torch.compiler.is_compiling():
            self._stay()
            result = self._run(inputs, beside)
        else:
            with self._in_place(), nullcontext() if evidence is None else evidence.gathering():
                result = self._run(inputs, beside)
        values, self._values = self._values, {}
        held = {} if self.head is None else self._held(self.head, values, result)
        if self.head is not None:
            pass
        elif self.output is not None:
            values[LOGITS] = self.output(result)
        elif "logits_to_keep" in beside:
            pass
        elif (logits := logits_of(result) if LOGITS in self.patterns else _logits_in(result)) is not None:
            values[LOGITS] = logits
        values |= {tap: _pick(tap, item, result) for tap, item in self._items.items()}
        wanted = [names for tap, names in self.patterns.items() if tap not in held]
        if missed := [name for names in wanted for name in names if name not in values]:
            raise CaptureError(
                f"tapped modules {[self._shown(name) for name in missed]} did not run in the forward pass, so they "
                "have no output to distil; tap a module that runs, or the block that holds it"
            )
        if overwritten := [name for name, version in self._versions.items() if values[name]._version != version]:
            raise CaptureError(
                f"the tensors at the taps {overwritten} were overwritten later in the forward pass by an operation in "
                "place, such as nn.ReLU(inplace=True) or +=; build the model with inplace=False, or tap the module "
                "that overwrites them"
            )
        if evidence is not None:
            self._learn_layouts(evidence, values)
        untold = UnknownLayout("a model that only ran under torch.compile (call it once before it is compiled)")
        return Captured(
            {name: values[name] for names in wanted for name in names}
            | {name: value for name, value in values.items() if name == LOGITS},
            self.patterns,
            layouts=self._layouts | dict.fromkeys(self._unseen(), untold),
            held=held,
        )

    def _held(self, head: Head, values: Mapping[str, Tensor], result: Any) -> dict[str, Held]:
        """The logits as the head holds them; in the first pass they are held against the model's own."""
        who = type(unwrap(self.model)).__name__
        if self._entering not in values:
            raise CaptureError(
                f"{who}: the module of {head.hidden!r}, whose hidden states enter the head, did not run; tap what does"
            )
        assert self._layer is not None
        held = head.logits(values[self._entering], self._layer)
        if not self._checked_head and not torch.compiler.is_compiling():
            head.check(held, logits_of(result), who)
            self._checked_head = True
        return {LOGITS: held} if LOGITS in self.patterns else {}

    def _run(self, inputs: Any, beside: Mapping[str, Any]) -> Any:
        self._active = True
        try:
            with blaming("the model", unwrap(self.model)):
                return call(self.model, inputs, beside)
        finally:
            self._active = False

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Has the hooks on the model within, where they are not on it already."""
        if self._handles:
            yield
            return
        self._attach()
        try:
            yield
        finally:
            self._detach()

    def _stay(self) -> None:
        if not self._handles:
            self._attach()
            _STAYING.add(self)

    # so that it runs as it is while a call is traced, since a graph can add no hooks: all that
    # torch.compiler.assume_constant_result does but for importing the compiler, which takes a second
    _stay._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _attach(self) -> None:
        self._handles = [attach() for attach in self._hooks.values()]

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": []}  # hooks stay behind where the model is copied without its taps

    def _unseen(self) -> list[str]:
        """Features whose layout no pass has told yet."""
        features = (
            name for names in self.patterns.values() for name in names if name != LOGITS and name not in self._items
        )
        return [name for name in features if name not in self._layouts and not name.endswith(":affine")]

    def _evidence(self) -> Evidence | None:
        """Watches the modules in the first pass that captures a feature; later passes cost nothing."""
        if torch.compiler.is_compiling() or not self._unseen():
            return None
        return Evidence({clean_name(name): module for name, module in unwrap(self.model).named_modules()})

    def _learn_layouts(self, evidence: Evidence, values: Mapping[str, Tensor]) -> None:
        for name in self._unseen():
            form = _TAP.fullmatch(name)
            assert form is not None  # checked when the tap was added
            module = self._aliases.get(form["module"], form["module"])
            self._layouts[name] = evidence.layout_of(values[name], module, entering=form["end"] is not None)

    def _shown(self, name: str) -> str:
        """A tap, with the module that it stands for now if that has another name."""
        module = re.split(r"[:\[]", name)[0]
        return f"{name} (now {self._aliases[module]})" if module in self._aliases else name

    def _item(self, tap: str) -> tuple[str, ...] | None:
        """A tap that is one item of what the model returns, None for one in the model."""
        form = _TAP.fullmatch(tap)
        if form is None or form["module"] != LOGITS or form["item"] is None or hasattr(unwrap(self.model), LOGITS):
            return None
        self._items[str(tap)] = form["item"]
        return (str(tap),)

    def _resolve(self, tap: str) -> tuple[str, ...]:
        form = _TAP.fullmatch(tap)
        if form is None:
            raise CaptureError(
                f"{tap!r} is no tap; write a module name, 'name:input', 'name:qkv', 'name[item]', 'name:affine' or a "
                "glob"
            )
        modules = {clean_name(name): module for name, module in unwrap(self.model).named_modules()}
        modules.pop("", None)
        self._aliases = aliases_of(unwrap(self.model))
        for old, new in self._aliases.items():
            modules.pop(old, None)
            if new in modules:
                modules[old] = modules[new]
        pattern, suffix = form["module"], tap[form.end("module") :]
        names = [name for name in modules if _matches(name, pattern)] if _GLOB.search(pattern) else [pattern]
        if not names or names[0] not in modules:
            raise CaptureError(
                f"tap {self._shown(tap)!r} names no module of {type(unwrap(self.model)).__name__}; "
                f"{nearest(pattern, modules)}"
            )
        if any(hasattr(module, "_orig_mod") for module in self.model.modules()):
            raise CaptureError(
                f"tap {tap!r} comes after torch.compile, where new hooks never run; tap the plain model and compile "
                "the scheme instead, or pass compile=True to kdx.fit"
            )
        if form["affine"]:
            for name, module in modules.items():
                if isinstance(module, _BatchNorm):
                    self._hooks[f"{name}:norm"] = functools.partial(module.register_forward_hook, self._note_norm)
        for name in names:
            self._hooks[name + suffix] = self._hook(modules[name], name + suffix, form)
        return tuple(name + suffix for name in names)

    def _hook(self, module: nn.Module, name: str, form: re.Match[str]) -> Callable[[], Any]:
        """Makes the function that puts the hook of one tap on its module."""
        record = functools.partial(self._record_affine if form["affine"] else self._record, name, form["item"])
        if form["end"] == ":qkv":
            check_attention(name, module)
            return functools.partial(
                module.register_forward_pre_hook, functools.partial(_record_projections, record, name), with_kwargs=True
            )
        if form["end"]:
            hook = functools.partial(_record_input, record)
            return functools.partial(module.register_forward_pre_hook, hook, with_kwargs=True)
        return functools.partial(module.register_forward_hook, functools.partial(_record_output, record))

    def _record(self, name: str, item: str | None, value: Any) -> None:
        if self._active:
            self._values[name] = found = _pick(name, item, value)
            if not torch.compiler.is_compiling() and not found.is_inference():
                self._versions[name] = found._version

    def _note_norm(self, module: nn.Module, _args: Any, _value: Any) -> None:
        self._norm = module

    def _record_affine(self, name: str, item: str | None, value: Any) -> None:
        if self._active:
            weight, bias = getattr(self._norm, "weight", None), getattr(self._norm, "bias", None)
            if weight is None or bias is None:
                found = "no BatchNorm ran before" if self._norm is None else "the BatchNorm before has none"
                raise CaptureError(f"tap {name!r} asks for the weight and bias of a BatchNorm, but {found}")
            self._values[name] = torch.stack([weight, bias])


_STAYING: weakref.WeakSet[Taps] = weakref.WeakSet()
"""Taps whose hooks stay on their models, since torch.compile traced a call."""


@contextmanager
def hooks_removed() -> Iterator[None]:
    """Takes off at its end the hooks that ``torch.compile`` made stay on models within it."""
    before = set(_STAYING)
    try:
        yield
    finally:
        for taps in set(_STAYING) - before:
            taps._detach()
            _STAYING.discard(taps)


def reader(path: str) -> Callable[[Any], Tensor]:
    """Makes the function that reads the item of a model's output that a path names, as ``"[1][0]"``.

    Raises:
        ValueError: it is no path.
    """
    if re.fullmatch(ITEMS, path) is None:
        raise ValueError(f"output: expected the path of an item, as '[1][0]' or '[depth]', or a callable, got {path!r}")
    return functools.partial(_read, path)


def reading(output: Output, who: str) -> Callable[[Any], Tensor] | None:
    """The function that reads the logits in what a model returns; None: as usual.

    Raises:
        ValueError: it is no path, or a :class:`kdx.Head`, and ``who`` reads the logits themselves.
    """
    if isinstance(output, Head):
        raise ValueError(
            f"output: {who} reads the logits themselves, and kdx.Head says that they are not made; leave it out"
        )
    return reader(output) if isinstance(output, str) else output


def _read(path: str, result: Any) -> Tensor:
    return _pick(f"output{path}", path, result)


def _record_input(record: Callable[[Any], None], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    record(args or tuple(kwargs.values()))


def _record_projections(
    record: Callable[[Any], None], name: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    record(projections_of(name, module, args, kwargs))


def _record_output(record: Callable[[Any], None], _module: nn.Module, _args: Any, value: Any) -> None:
    record(value)


def _pick(name: str, item: str | None, value: Any) -> Tensor:
    found = value
    if item is not None:
        try:
            found = item_of(value, item)
        except KeyError as error:
            if str(error.args[0]).startswith("NoneType "):
                raise CaptureError(_gave_none(name)) from error
            raise CaptureError(f"tap {name!r}: the module gave {error.args[0]}") from error
    elif isinstance(value, tuple | list):
        found = next((part for part in value if isinstance(part, Tensor)), None)
    if isinstance(found, Tensor):
        return found
    if found is None and item is not None:
        raise CaptureError(_gave_none(name))
    keys = f" with keys {list(value)}" if isinstance(value, Mapping) else ""
    raise CaptureError(
        f"tap {name!r} gave {type(found).__name__}{keys}, not a tensor; name the part to take, as in '{name}[key]'"
    )


def _gave_none(name: str) -> str:
    module = name.partition("[")[0]
    return (
        f"tap {name!r} gave None: as it is built and called, the module computes no such tensor. Attention weights are "
        'computed by models of transformers built with attn_implementation="eager" (and not with "sdpa"; among the '
        "model's outputs if it is called with output_attentions=True), and by torch.nn.MultiheadAttention called with "
        "need_weights=True, as its encoder layers do not. Knowledge on attention reads queries and keys instead, which "
        f"all of them compute: tap the modules that give them, or '{module}:qkv' of a torch.nn.MultiheadAttention"
    )


@functools.lru_cache(maxsize=65536)
def _matches(name: str, pattern: str) -> bool:
    return _match_parts(name.split("."), pattern.split("."))


def _match_parts(name: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(_match_parts(name[skip:], pattern[1:]) for skip in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and _match_parts(name[1:], pattern[1:])
