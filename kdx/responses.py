"""The form, the class axis and the void of a task's outputs, for the knowledge that compares them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Form", "Responses", "class_rows", "of_class_rows"]


class Form(Enum):
    """The meaning of the numbers of an output."""

    CLASSES = "classes"
    """Logits of a softmax: one of C classes for every element."""
    BERNOULLI = "Bernoulli"
    """Logits of sigmoids: each of C labels is there or not."""
    VALUES = "values"
    """The quantities themselves, as a regression gives them."""
    EMBEDDING = "embedding"
    """Vectors whose distances mean something, not their coordinates."""


@dataclass(frozen=True, slots=True)
class Responses:
    """Facts of the outputs that a task trains, so that nothing has to be guessed from a shape.

    Args:
        form: what the numbers mean; None: nobody says.
        class_dim: the axis of the classes (labels, quantities); None: axis 1 of ``[N, C]`` and of four dimensions or
            more, ``[N, C, d1, d2, ...]``, as in :func:`torch.nn.functional.cross_entropy`, and the last of
            ``[N, L, C]``.
        void: whether a target of ``-100`` says that there is nothing to learn (a border, padding), so that no teacher
            teaches there either; False: it is an element without a label, which the teacher still teaches; None: the
            task does not say.
        tap: where in a model the outputs are.
        ignored: the target that stands for ``-100`` in the loss; where it is another number, what it is to knowledge
            is not known.
        shift: whether outputs ``[N, L, C]`` are predictions of what comes next, so that the output at place l belongs
            to the target at l + 1, as in language models; :meth:`aligned` moves targets to their outputs.
        taught: the item of the inputs, ``[N, L]``, that is not 0 at the tokens that a teacher teaches, as
            ``"attention_mask"``, instead of those that have a label.

    Example:
        >>> Responses().axis((8, 5, 32, 32)), Responses().axis((8, 12, 5)), Responses(class_dim=1).axis((8, 5, 12))
        (1, 2, 1)
    """

    form: Form | None = Form.CLASSES
    class_dim: int | None = None
    void: bool | None = False
    tap: str = "logits"
    ignored: int = -100
    shift: bool = False
    taught: str | None = None

    def at(self, tap: str) -> Responses:
        """The same facts of outputs at another tap, as ``logits[seg]``."""
        return replace(self, tap=tap)

    def aligned(self, targets: Any) -> Any:
        """Targets, each at the place of the output that it belongs to.

        Class numbers ``[N, L]`` of a task with :attr:`shift` are moved one place to the left, ``-100`` behind the last;
        all others are given back as they are.

        Example:
            >>> import torch
            >>> Responses(shift=True).aligned(torch.tensor([[5, 6, 7]])).tolist()
            [[6, 7, -100]]
        """
        if not self.shift or getattr(targets, "dim", lambda: 0)() != 2 or targets.is_floating_point():
            return targets
        moved = targets.roll(-1, 1)
        moved[:, -1:] = self.ignored
        return moved

    def axis(self, shape: Sequence[int]) -> int:
        """The class axis of outputs of this shape, counted from 0.

        Raises:
            ValueError: fewer than two dimensions, or ``class_dim`` is none of them or the batch's.
        """
        dims = len(shape)
        if dims < 2:
            raise ValueError(f"expected outputs [N, C] or with more dimensions, got shape {list(shape)}")
        if self.class_dim is None:
            return 2 if dims == 3 else 1
        axis = self.class_dim + dims if self.class_dim < 0 else self.class_dim
        if not 0 < axis < dims:
            raise ValueError(
                f"class_dim: expected an axis of outputs of shape {list(shape)} other than the batch's, got "
                f"{self.class_dim}"
            )
        return axis


def class_rows(outputs: Tensor, dim: int) -> Tensor:
    """Outputs with their classes on axis ``dim`` as rows ``[R, C]``, a view where there can be one."""
    return outputs.movedim(dim, -1).reshape(-1, outputs.shape[dim])


def of_class_rows(rows: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """The inverse of :func:`class_rows`: rows ``[R, C]`` as outputs of a shape."""
    elements = [*shape[:dim], *shape[dim + 1 :]]
    return rows.reshape(*elements, shape[dim]).movedim(-1, dim)
