"""A model that only teaches."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.baked_modes import bakes_mode
from kdx.batch import Batch, Sight
from kdx.capture import LOGITS, Captured, Output, Taps
from kdx.inference import inference_tensors
from kdx.modes import check_can_evaluate, hold, unchanged_buffers
from kdx.teachers.base import ModelTeacher, Teacher
from kdx.teachers.without_adapter import Base, check_has_adapter, check_not_trained, without_adapter

__all__ = ["Frozen", "as_teacher"]


class Frozen(ModelTeacher):
    """A model that only teaches: evaluation mode, no gradient, nothing about it changes.

    The model is deliberately not a submodule. So it is in no ``parameters()``, in no checkpoint and in no export, no
    ``train()`` of its owner reaches it and a distributed engine leaves it alone; it still follows its owner's device.

    With ``dtype`` or ``device`` the teacher holds a copy of the model that is converted tensor by tensor, and the given
    one stays what it was: the caller may go on using it, or drop it to free its memory. Without them it holds the model
    itself, which then moves with the scheme.

    Args:
        model: the teacher; it is set to evaluation mode and keeps its own flags otherwise. Before every answer each of
            its submodules is put back into that mode. An exported or traced model has to be one of evaluation mode.
        output: see :class:`kdx.Taps`.
        train_mode: puts the model into training mode, so that its BatchNorm normalises by the batch. Its running
            statistics are restored after every call. A few methods (OFD) need this; anywhere else it is a mistake.
        dtype: dtype in which the teacher computes, such as ``torch.bfloat16``, whatever autocast or its owner's
            ``.double()`` say; floating inputs are converted. Its results have the dtype of the inputs, fp32 for token
            ids; logits are widened where a component asks for the tensor (``captured.response`` gives them as they
            are), and logits held by a :class:`kdx.Head` stay in it.
        device: where the teacher stays and computes, such as ``"cpu"`` for one that does not fit beside the student;
            its results are on the device of the batch.
        view: which inputs the teacher sees, where not those of the student: the name of one of ``batch.views``, or a
            function of the batch that gives them.
        adapter: ``"off"`` for a student with adapters (LoRA) that learns from its own base: ``model`` is the student,
            a model of peft or any other with a context ``disable_adapter()``, and teaches without its adapters. It is
            in evaluation mode for its answers alone, and shares its memory with the student on purpose.

    Raises:
        TypeError: ``dtype`` is not a floating dtype; with ``adapter`` the model cannot turn its adapters off.
        ValueError: ``adapter`` is neither None nor "off", or beside ``train_mode``; in the first answer, the base of
            the adapters is trained too. The model was exported or traced in the other mode, or, with ``train_mode``,
            its parameters or buffers were made under ``torch.inference_mode``.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> teacher = Frozen(model, dtype=torch.bfloat16)
        >>> logits = teacher(Batch(torch.ones(4, 3))).logits
        >>> logits.dtype, teacher.model.weight.dtype, model.weight.dtype
        (torch.float32, torch.bfloat16, torch.float32)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        output: Output = None,
        train_mode: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        view: Sight = None,
        adapter: Literal["off"] | None = None,
    ) -> None:
        super().__init__()
        if adapter not in (None, "off") or (adapter and train_mode):
            got = "it beside train_mode" if adapter == "off" else repr(adapter)
            raise ValueError(f"adapter: expected 'off', for a student that teaches without its adapters, got {got}")
        if adapter:
            check_has_adapter(model)
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating dtype, such as torch.bfloat16; got {dtype}")
        self.dtype = dtype
        self.device = None if device is None else torch.device(device)
        if dtype is not None or device is not None:
            model = self._converted(model)
        self.train_mode = train_mode
        self.adapter = adapter
        self.inside_student = adapter is not None and not self._pinned
        self._base_is_frozen = not self.inside_student
        self.taps = Taps(model, (), output=output)
        self.view = view
        self._check()
        self._resting: tuple[nn.Module, ...] = ()
        if train_mode:
            model.train()
            # parts that a train() of the model's own keeps in evaluation mode
            self._resting = tuple(module for module in model.modules() if not module.training)
        self._hold()

    @property
    def model(self) -> nn.Module:
        """The teacher's module."""
        return self.taps.model

    @property
    @override
    def unchanging(self) -> nn.Module:
        return Base(self.model) if self.inside_student else self.model

    @override
    def spare_logits(self) -> None:
        if not self.inside_student:  # whose every pass is held against the targets
            self.taps.spare_logits()

    def _check(self) -> None:
        if not self.train_mode:
            check_can_evaluate(self.model, "the teacher")
        elif bakes_mode(self.model):
            raise ValueError(
                f"train_mode: the teacher ({type(self.model).__name__}) is exported or traced and has no training "
                "mode; give the model that it was made from"
            )
        elif made := inference_tensors(self.model):
            raise ValueError(
                f"train_mode: {', '.join(made)} of the teacher were made under torch.inference_mode, so that its "
                "statistics cannot be restored; build or load the model outside of it, or pass copy.deepcopy(model)"
            )

    def _hold(self) -> None:
        """Puts every submodule back into the mode in which it teaches."""
        if self.inside_student:
            return  # the modes are the student's
        if not self.train_mode:
            hold(self.model)
            return
        for module in self.model.modules():
            wanted = all(module is not resting for resting in self._resting)
            if module.training != wanted:
                module.training = wanted

    @override
    def forward(self, batch: Batch) -> Captured:
        batch = batch.seen(self.view)
        if self.adapter is not None:
            return self._without_adapter(batch)
        self._hold()
        with torch.no_grad(), unchanged_buffers(self.model) if self.train_mode else nullcontext():
            captured = self._held(batch) if self._pinned else self.taps(batch.inputs)
        return captured.detach()

    def _without_adapter(self, batch: Batch) -> Captured:
        if not self._base_is_frozen and not torch.compiler.is_compiling():
            check_not_trained(self.model, lambda: self.taps(batch.inputs))
            self._base_is_frozen = True
        with torch.no_grad(), without_adapter(self.model):
            captured = self._held(batch) if self._pinned else self.taps(batch.inputs)
        return captured.detach()

    def through(self, batch: Batch) -> Captured:
        """Answers a batch with a graph back to the inputs: for a generator of inputs that learns from it.

        Its own parameters get no gradient, and nothing about it changes.
        """
        batch = batch.seen(self.view)
        asking = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in asking:
            parameter.requires_grad_(False)
        try:
            self._hold()
            with unchanged_buffers(self.model) if self.train_mode else nullcontext():
                return self._held(batch) if self._pinned else self.taps(batch.inputs)
        finally:
            for parameter in asking:
                parameter.requires_grad_(True)

    def check_passes_gradient(self) -> None:
        """Checks that :meth:`through` can be used.

        Raises:
            ValueError: parameters or buffers were made under ``torch.inference_mode``.
        """
        if self.adapter is not None:
            raise ValueError("adapter='off' is for a student that learns from its own base; give the base by itself")
        if made := inference_tensors(self.model):
            raise ValueError(
                f"{made[0]!r} of the teacher was made under torch.inference_mode, and no gradient can pass it; build "
                "or load the model outside of it, or pass copy.deepcopy(model)"
            )

    @property
    def _pinned(self) -> bool:
        return self.dtype is not None or self.device is not None

    def _held(self, batch: Batch) -> Captured:
        """A pass in the teacher's own dtype and device, with results in those of the batch.

        Logits in its own dtype are held as they are beside those that are made when asked for, and logits that are held
        as hidden states and a head stay in it.
        """
        first = next(iter(_tensors(batch.inputs)))
        device = self.device or first.device
        inputs = _cast(batch.to(device).inputs, self.dtype)
        own = self.dtype is not None
        with torch.autocast(device.type, enabled=False) if own else nullcontext():
            captured = self.taps(inputs)
        wanted = first.dtype if first.is_floating_point() else torch.float32
        values = {
            name: value.to(first.device, wanted if own and value.is_floating_point() else value.dtype)
            for name, value in captured.items()
            if name != LOGITS or not own
        }
        found = captured.having(values)
        if own and LOGITS in captured:
            logits = captured[LOGITS].to(first.device)
            found.held[LOGITS] = logits
            found.later[LOGITS] = functools.partial(logits.to, wanted if logits.is_floating_point() else logits.dtype)
        found.held |= {name: value.to(first.device) for name, value in captured.held.items()}
        return found

    def _place(self, tensor: Tensor, like: Tensor | None = None) -> Tensor:
        """A tensor with the teacher's own dtype and device, or those of ``like`` where it has none."""
        like = tensor if like is None else like
        dtype = self.dtype if self.dtype is not None and tensor.is_floating_point() else like.dtype
        return tensor.to(self.device or like.device, dtype)

    def _converted(self, model: nn.Module) -> nn.Module:
        """A copy in the teacher's own dtype and device, converted tensor by tensor to save memory."""
        memo: dict[int, Any] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            placed = self._place(tensor.detach())
            placed = placed.clone() if placed.data_ptr() == tensor.data_ptr() else placed
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(placed, tensor.requires_grad) if is_parameter else placed
        return copy.deepcopy(model, memo)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self._pinned:
            given = fn
            fn = lambda tensor: self._place(tensor, like=given(tensor.new_empty(0)))  # noqa: E731  # one expression
        self.model._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def as_teacher(value: nn.Module | Teacher, output: Output = None, view: Sight = None) -> Teacher:
    """A teacher as it is; a plain model as a :class:`Frozen` teacher.

    Args:
        value: a teacher or a model.
        output: of a plain model, see :class:`kdx.Taps`.
        view: of a plain model, see :class:`Frozen`.

    Raises:
        TypeError: it is neither.
        ValueError: ``output`` or ``view`` was given with a teacher, which has its own.
    """
    if isinstance(value, Teacher):
        if output is not None:
            raise ValueError("teacher_output applies to a plain model; give output= to the Teacher itself")
        if view is not None:
            raise ValueError("teacher_view applies to a plain model; give view= to the Teacher itself")
        return value
    if isinstance(value, nn.Module):
        return Frozen(value, output=output, view=view)
    raise TypeError(f"teacher must be an nn.Module or a kdx Teacher, got {type(value).__name__}")


def _tensors(inputs: Any) -> Iterable[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    items = inputs.values() if isinstance(inputs, dict) else inputs
    return [item for item in items if isinstance(item, Tensor)]


def _cast(inputs: Any, dtype: torch.dtype | None) -> Any:
    """Inputs whose floating tensors have the dtype."""
    if isinstance(inputs, Tensor):
        return inputs.to(dtype) if dtype is not None and inputs.is_floating_point() else inputs
    if isinstance(inputs, dict):
        return {key: _cast(item, dtype) for key, item in inputs.items()}
    if isinstance(inputs, tuple | list):
        return [_cast(item, dtype) for item in inputs]
    return inputs
