"""Where a model's logits come from: its last hidden states, and the linear layer that makes logits of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kdx.errors import CaptureError, nearest
from kdx.linear_logits import LinearLogits
from kdx.wrapped import clean_name, unwrap

__all__ = ["Head"]

_SCALES = {"logit_scale": 1, "lm_head_multiplier": 1, "logits_scaling": -1}
"""Name in a config of transformers -> the power of it that logits are multiplied by."""
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")


@dataclass(frozen=True, slots=True)
class Head:
    """Says where a model's last hidden states and its output layer are, so that logits need not be held.

    Given as ``output=`` (``student_output=``, ``teacher_output=``) in place of a way to the logits: the tap ``logits``
    is then :class:`kdx.LinearLogits`, of which a loss makes a few rows at a time. A model that takes ``logits_to_keep``
    (most causal ones of Hugging Face) is told to make the last logits alone; the first pass holds them against those of
    hidden states and layer, and refuses a head that is not the model's own.

    Args:
        hidden: tap of the hidden states that enter the layer, of all places: ``"model[last_hidden_state]"``, and
            ``"lm_head:input"`` of models that make all their logits.
        layer: name of the output layer, an ``nn.Linear``, as ``"lm_head"``.
        scale: what the model multiplies its logits by, the bias included.
        softcap: c > 0 of a model that caps its logits, ``c tanh(z / c)`` after the scale; None: it does not.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> Head("norm", "head", softcap=30.0)
        Head(hidden='norm', layer='head', scale=1.0, softcap=30.0)
    """

    hidden: str
    layer: str
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale) or self.scale == 0:
            raise ValueError(f"scale: expected a finite number other than 0, got {self.scale}")
        if self.softcap is not None and not 0 < self.softcap < math.inf:
            raise ValueError(f"softcap: expected a number above 0, or None where there is none, got {self.softcap}")

    @classmethod
    def of(cls, model: nn.Module) -> Head:
        """The head of a causal language model of Hugging Face, with adapters or without, scale and softcap as its
        config says them.

        Raises:
            CaptureError: it does not say what its decoder and its output layer are.
        """
        inner = unwrap(model)
        names = {id(module): clean_name(name) for name, module in inner.named_modules()}
        get_base = getattr(inner, "get_base_model", None)
        base = get_base() if callable(get_base) else inner
        get_layer = getattr(base, "get_output_embeddings", None)
        layer = get_layer() if callable(get_layer) else None
        get_decoder = getattr(base, "get_decoder", None)
        decoder = get_decoder() if callable(get_decoder) else None
        if decoder is None or decoder is base:
            decoder = getattr(base, "base_model", None)
        if layer is None or id(layer) not in names or decoder is base or id(decoder) not in names:
            raise CaptureError(
                f"{type(base).__name__} does not say where its hidden states and its output layer are, as causal "
                "language models of Hugging Face do (get_decoder, get_output_embeddings); name both: "
                "kdx.Head(hidden=tap, layer=name)"
            )
        config = getattr(base, "config", None)
        config = getattr(config, "get_text_config", lambda: config)()
        scale = 1.0
        for name, power in _SCALES.items():
            if isinstance(found := getattr(config, name, None), int | float):
                scale *= found**power
        caps = [found for name in _SOFTCAPS if isinstance(found := getattr(config, name, None), int | float)]
        return cls(
            f"{names[id(decoder)]}[last_hidden_state]", names[id(layer)], scale=scale, softcap=caps[0] if caps else None
        )

    def layer_of(self, model: nn.Module) -> nn.Linear:
        """The output layer in a model.

        Raises:
            CaptureError: there is no such module, or it is no plain linear layer, as one with an adapter on it or one
                that is quantised.
        """
        modules = {clean_name(name): module for name, module in unwrap(model).named_modules()}
        if self.layer not in modules:
            raise CaptureError(
                f"the head's layer {self.layer!r} is no module of {type(unwrap(model)).__name__}; "
                f"{nearest(self.layer, modules)}"
            )
        layer = modules[self.layer]
        if isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward and _is_plain(layer.weight):
            return layer
        raise CaptureError(
            f"the head's layer {self.layer!r} is {_shown(layer)}, not a plain nn.Linear, so its logits are not hidden "
            "states times a weight: an adapter on it or a quantised weight does more. Leave the head out of the "
            "adapters' and the quantised layers, or leave kdx.Head out, and the logits are made whole"
        )

    def logits(self, hidden: Tensor, layer: nn.Linear) -> LinearLogits:
        """The logits of hidden states through the layer."""
        return LinearLogits(hidden, layer.weight, layer.bias, self.scale, self.softcap)

    def check(self, held: LinearLogits, own: Tensor, who: str) -> None:
        """Holds the last logits that a model itself made against those of its hidden states and layer.

        Args:
            held: of one pass.
            own: the model's own logits of the same pass, ``[..., V]``, of all places or of the last alone.
            who: how the message names the model.

        Raises:
            CaptureError: they differ.
        """
        rows = held.hidden[:, -1] if held.dim() == 3 else held.hidden
        own = own[:, -1] if own.dim() == 3 else own
        if (*rows.shape[:-1], held.shape[-1]) != tuple(own.shape):
            raise CaptureError(
                f"{who}: the head gives logits {list(held.shape)}, and the model's own are {list(own.shape)} at the "
                f"last place; is {self.hidden!r} the tap of what enters the layer {self.layer!r}?"
            )
        with torch.no_grad():
            few = _as_multiplied(replace(held, hidden=rows))
            room = max(4 * torch.finfo(x.dtype).eps for x in (few.hidden, few.weight, own))
            if held.device.type == "cuda" or torch.get_float32_matmul_precision() != "highest":
                room = max(room, 4e-3)  # TF32
            made, own = few.dense(), own.to(few.dtype)
            known = made.isfinite() & own.isfinite()
            most, apart = (torch.where(known, x, 0.0).abs().max().item() for x in (own, made - own))
        if apart > max(room, 1e-5) * most or bool((made.isfinite() != own.isfinite()).any()):
            raise CaptureError(
                f"{who}: its own last logits differ by up to {apart:.2g} (they are {most:.2g} at most) from those of "
                f"the tap {self.hidden!r} through {self.layer!r} with scale {self.scale:g} and softcap {self.softcap}; "
                "say the tap, scale= and softcap= that the model has, or leave kdx.Head out if it does more between "
                "its hidden states and its logits"
            )


def _as_multiplied(held: LinearLogits) -> LinearLogits:
    """The operands in the dtype that torch.autocast multiplies in, where it is on."""
    device = held.device.type
    if not torch.is_autocast_enabled(device) or held.dtype != torch.float32:
        return held
    dtype = torch.get_autocast_dtype(device)
    return replace(held, hidden=held.hidden.to(dtype), weight=held.weight.to(dtype))


def _is_plain(weight: Any) -> bool:
    return type(weight) in (nn.Parameter, Tensor) and weight.is_floating_point()


def _shown(layer: nn.Module) -> str:
    weight = getattr(layer, "weight", None)
    found = f"{type(layer).__module__.partition('.')[0]}'s {type(layer).__name__}"
    return found if weight is None or _is_plain(weight) else f"{found} with a weight of {type(weight).__name__}"
