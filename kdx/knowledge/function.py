"""Knowledge from a plain function of the outputs of student and teacher."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import LOGITS, Captured
from kdx.knowledge.base import Knowledge
from kdx.knowledge.response import Outputs, Response
from kdx.losses import LossTerm, Mean, Over

__all__ = ["FunctionKnowledge", "KnowledgeFn", "as_knowledge"]

KnowledgeFn = Callable[[Tensor, Tensor], LossTerm]
"""``(student_outputs, teacher_outputs) -> loss``; :class:`FunctionKnowledge` says what the loss may be."""

_BY_ELEMENT = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
_SOFTENED = "take kdx.SoftTargets(temperature=...), which makes probabilities of both sides' logits"
_ELSEWHERE: dict[str, str] = {
    "KLDivLoss": f"expects log-probabilities of the student and probabilities of the teacher, no logits; {_SOFTENED}",
    "CrossEntropyLoss": "expects class numbers or probabilities of the teacher, no logits; "
    f"{_SOFTENED}, or kdx.knowledge.HardTargets(), which takes the class that the teacher predicts",
    "BCELoss": "expects probabilities, no logits; take kdx.knowledge.SigmoidTargets(), which makes them of both sides",
}
_ALIASES = {"NLLLoss": "CrossEntropyLoss", "BCEWithLogitsLoss": "BCELoss"}
_FUNCTIONS: dict[Any, str] = {
    F.kl_div: "KLDivLoss",
    F.cross_entropy: "CrossEntropyLoss",
    F.nll_loss: "CrossEntropyLoss",
    F.binary_cross_entropy: "BCELoss",
    F.binary_cross_entropy_with_logits: "BCELoss",
}


class FunctionKnowledge(Response):
    """A loss given as a function of the outputs of student and teacher; a scheme makes one of a plain function.

    Loss: ``fn(student, teacher)``, a mean. A scalar is a mean over the elements of the outputs: the samples of
    ``[N, C]``, the tokens or pixels of ``[N, L, C]`` and ``[N, C, d1, ...]``. A tensor with a value for every sample
    (``[N]``), element or number is averaged over all of them. A function that counts something else returns
    ``(value, count)``. Where the task says that elements teach nothing (padding, a border), the function is handed the
    others as rows ``[R, C]``; where there are none the loss is 0. Gradients reach both sides; no ``T^2``.

    Args:
        fn: the function, or a module that is called with both outputs and whose parameters are trained along. Of
            torch's losses MSELoss, L1Loss, SmoothL1Loss and HuberLoss, not summed; others expect no logits.
        class_dim: axis of the classes, see :class:`kdx.knowledge.Response`; None: what the task says.
        void: whether elements with target -100 teach nothing; None: what the task says.
        vocabulary: n, to compare the first n classes of both sides, see :class:`kdx.knowledge.Response`; None: all.
        student: tap of the student's outputs.
        teacher: tap of the teacher's outputs, the same shape.

    Raises:
        TypeError: ``fn`` cannot be called with two tensors, or gives something else than numbers.
        ValueError: a loss of torch that sums, or that expects no logits; the message says what to take.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> squares = FunctionKnowledge(lambda student, teacher: (student - teacher).square())
        >>> s, t = Captured({"logits": torch.tensor([[0.0, 0.0]])}), Captured({"logits": torch.tensor([[4.0, 0.0]])})
        >>> squares(s, t, None).item()
        8.0
    """

    form = None

    def __init__(
        self,
        fn: KnowledgeFn,
        *,
        class_dim: int | None = None,
        void: bool | None = None,
        vocabulary: int | None = None,
        student: str = LOGITS,
        teacher: str = LOGITS,
    ) -> None:
        super().__init__(class_dim=class_dim, void=void, vocabulary=vocabulary, student=student, teacher=teacher)
        _check(fn)
        self.fn = fn

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> Any:  # a mean with its count too
        outputs = self.outputs(student, teacher, batch)
        loss = self._called(outputs)
        if isinstance(loss, Tensor) and loss.dim() == 1 and outputs.mask is None and outputs.student.dim() > 2:
            return Mean.of_sum(loss.sum(), len(loss), Over.ROWS)  # a value for every sample, of many elements each
        return loss.mean() if isinstance(loss, Tensor) and loss.dim() else loss

    @override
    def compare(self, outputs: Outputs) -> Tensor:
        loss = self._called(outputs)
        value: Tensor = loss[0] if isinstance(loss, tuple) else loss
        return value.mean()

    def _called(self, outputs: Outputs) -> LossTerm:
        sides = (outputs.student, outputs.teacher) if outputs.mask is None else outputs.rows()
        if not sides[0].numel():
            zero: Tensor = outputs.student.sum() * 0
            return zero
        loss: LossTerm = self.fn(*sides)
        if isinstance(loss, Tensor) and loss.dim():
            shape, dim = list(sides[0].shape), 1 if outputs.mask is not None else outputs.dim
            if list(loss.shape) not in (shape, shape[:1], shape[:dim] + shape[dim + 1 :]):
                raise ValueError(
                    f"{_name(self.fn)} gave a tensor of shape {list(loss.shape)} for outputs of shape {shape}; return "
                    "one number, a value for every sample, element or number of the outputs, or (value, count)"
                )
        return loss

    @override
    def extra_repr(self) -> str:
        return _name(self.fn)


def as_knowledge(what: str, given: Any) -> Knowledge:
    """A component, or one made of a plain function of the outputs.

    Args:
        what: how messages name it.
        given: a component, a function or a module.

    Raises:
        TypeError: it is neither; the message says what to write.
        ValueError: a loss of torch that compares no logits.
    """
    if isinstance(given, Knowledge):
        return given
    expected = "expected a kdx.Knowledge, a function of (student, teacher) outputs, or (weight, one of them)"
    if isinstance(given, str):
        raise TypeError(f"{what}: {expected}, got {given!r}; a name becomes one with kdx.make('knowledge', {given!r})")
    if inspect.isclass(given):
        raise TypeError(f"{what}: {expected}, got the class {given.__name__}; give an object, {given.__name__}(...)")
    if not callable(given):
        raise TypeError(f"{what}: {expected}, got {type(given).__name__}")
    try:
        return FunctionKnowledge(given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what}: {error}") from error


def _check(fn: Any) -> None:
    name, inner = _name(fn), fn.func if isinstance(fn, functools.partial) else fn
    options = fn.keywords if isinstance(fn, functools.partial) else {}
    if isinstance(inner, nn.modules.loss._Loss) and type(inner).__module__.startswith("torch."):
        kind = _ALIASES.get(name, name)
    else:
        kind = _FUNCTIONS.get(inner, "") if not isinstance(inner, nn.Module) else ""
    if kind in _ELSEWHERE:
        raise ValueError(f"{name} {_ELSEWHERE[kind]}")
    if kind and not isinstance(inner, _BY_ELEMENT):
        raise ValueError(f"{name} compares outputs with labels, not with outputs; give a function of both outputs")
    if options.get("reduction", getattr(inner, "reduction", "mean")) == "sum":
        raise ValueError(
            f"{name} has reduction='sum', and a loss is a mean, so that it weighs the same whatever the batch size; "
            "leave reduction out, or take 'none'"
        )
    try:
        inspect.signature(fn.forward if isinstance(fn, nn.Module) else fn).bind(None, None)
    except TypeError as error:
        raise TypeError(
            f"{name} is called with two arguments, the outputs of student and teacher, and does not take them "
            f"({error}); for targets and layers write a kdx.Knowledge"
        ) from error
    except ValueError:
        pass  # one written in C does not tell


def _name(fn: Any) -> str:
    inner = fn.func if isinstance(fn, functools.partial) else fn
    return getattr(inner, "__name__", None) or type(inner).__name__
