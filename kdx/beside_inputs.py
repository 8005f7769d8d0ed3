"""Arguments that kdx gives models beside their inputs, as language models of Hugging Face take them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["beside_inputs", "call_names"]


def call_names(model: nn.Module) -> tuple[str, ...]:
    """The names of the arguments of a model of Hugging Face, in order; none of other models.

    Such a model has a ``config``. Of one with adapters that hands all arguments on, as those of peft do, they are those
    of its base (``get_base_model()``).
    """
    if getattr(model, "config", None) is None:
        return ()
    base = getattr(model, "get_base_model", None)
    found = base() if callable(base) else model
    try:
        return tuple(inspect.signature(type(found).forward).parameters)[1:]
    except (ValueError, TypeError):  # a module without a signature, as a scripted one
        return ()


def beside_inputs(names: tuple[str, ...], inputs: Any, *, logits: bool = True) -> dict[str, Any]:
    """The arguments that a model is called with beside its inputs.

    ``use_cache=False``: keys and values are kept for generation alone, cost memory in training, and where a cache is,
    transformers does not look for documents in ``position_ids``, so that those packed in one row see each other.
    ``logits_to_keep=1`` where nothing reads the logits, of which the last place is then the only one computed. Inputs
    that say one of them themselves are left to say it.

    Args:
        names: what the model takes, see :func:`call_names`.
        inputs: as it is called with: a tensor, a tuple or a mapping.
        logits: whether anything reads the logits.

    Example:
        >>> beside_inputs(("input_ids", "use_cache"), {"input_ids": None})
        {'use_cache': False}
        >>> beside_inputs(("input_ids", "use_cache"), {"input_ids": None, "use_cache": True})
        {}
    """
    if isinstance(inputs, Mapping):
        given = set(inputs)
    else:
        given = set(names[: len(inputs) if isinstance(inputs, tuple | list) else 1])
    found: dict[str, Any] = {}
    if "use_cache" in names and not given & {"use_cache", "past_key_values"}:
        found["use_cache"] = False
    if not logits and "logits_to_keep" in names and "logits_to_keep" not in given:
        found["logits_to_keep"] = 1
    return found
