"""Last hidden states, and the head that makes logits of them once for all samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from typing_extensions import override

from kdx.capture import LOGITS, Captured, Output
from kdx.errors import StoreError
from kdx.head import Head
from kdx.layout import Layout, UnknownLayout
from kdx.linear_logits import LinearLogits
from kdx.store.content import Content, rounded

__all__ = ["Hidden", "head_file", "head_from", "head_values"]


class Hidden(Content):
    """The hidden states that enter the output layer, rounded to the store's dtype: ``hidden[:TAP]``.

    The layer itself (weight, bias, scale, softcap) is in the store once, in the dtype that the teacher has it in. Read
    back, the logits are :class:`kdx.LinearLogits`: of all classes, and exact but for the rounding of the hidden states.
    Their tensor is made for what asks for it.

    Args:
        hidden: tap of the hidden states; None: what the teacher says, see :meth:`kdx.Head.of`.
    """

    def __init__(self, hidden: str | None = None) -> None:
        self.hidden = hidden

    def head_of(self, teacher: nn.Module, output: Output) -> Head:
        """The teacher's head: the one that was given as ``output``, else that of a language model of Hugging Face.

        Raises:
            ValueError: ``output`` is another way to the logits, or names other hidden states.
            CaptureError: nothing says what the head is.
        """
        if output is None:
            head = Head.of(teacher)
            return head if self.hidden is None else replace(head, hidden=self.hidden)
        if not isinstance(output, Head):
            raise ValueError(
                "output: hidden states are stored with the head that they go through, and it says how logits are read "
                "from what the teacher returns; give output=kdx.Head(hidden=tap, layer=name)"
            )
        if self.hidden not in (None, output.hidden):
            raise ValueError(f"what: hidden:{self.hidden} and output={output} name two taps; write hidden alone")
        return output

    @override
    def encode(self, teacher: Captured, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
        held = teacher.response(LOGITS)
        assert isinstance(held, LinearLogits)
        return {"hidden.states": rounded(held.hidden, dtype, "hidden states")}

    @override
    def layout(self, stored: str, teacher: Captured) -> Layout | UnknownLayout | None:
        held = teacher.response(LOGITS)
        return Layout("nlc") if isinstance(held, LinearLogits) and held.dim() == 3 else None

    @override
    def decode(self, stored: Mapping[str, Tensor], classes: int) -> dict[str, Tensor]:
        return {}


def head_file(head: Head, teacher: nn.Module) -> bytes:
    """The file of the teacher's output layer."""
    layer = head.layer_of(teacher)
    tensors = {"weight": layer.weight} | ({} if layer.bias is None else {"bias": layer.bias})
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def head_values(head: Head, teacher: nn.Module) -> dict[str, Any]:
    """The entry of a head in the manifest."""
    return {"scale": head.scale, "softcap": head.softcap, "width": head.layer_of(teacher).in_features}


def head_from(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> LinearLogits:
    """The head that was written, as the logits of no sample.

    Raises:
        StoreError: the manifest and the tensors do not make one.
    """
    try:
        weight = tensors["weight"]
        none = weight.new_empty(0, values["width"])
        return LinearLogits(none, weight, tensors.get("bias"), values["scale"], values["softcap"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StoreError(
            f"the store's manifest does not say what its head is ({error}); write the store again"
        ) from error
