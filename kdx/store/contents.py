"""The contents of a store, as users write them: ``logits``, ``hidden``, ``topk:8@4``, ``sample:9@4``, and so on."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kdx.store.content import Content, Whole
from kdx.store.hidden import Hidden
from kdx.store.sample import Sample
from kdx.store.top_k import TopK

__all__ = ["parse"]

_SPARSE = re.compile(r"(?P<kind>topk|sample):(?P<k>\d+)(@(?P<temperature>\d+(\.\d+)?))?")


def parse(what: Sequence[str], class_dim: int | None = None) -> dict[str, Content]:
    """Reads contents from their written form.

    Args:
        what: the forms.
        class_dim: axis of the classes in the logits, where :class:`kdx.responses.Responses` does not tell it.

    Raises:
        ValueError: unknown words, or the logits in two forms.

    Example:
        >>> [type(content).__name__ for content in parse(["topk:8@4", "features:stage*"]).values()]
        ['TopK', 'Whole']
    """
    found = {text: _parse(text) for text in what}
    if not found:
        raise ValueError("what: nothing to store; write logits, hidden, topk:K, sample:K or features:TAP")
    if len([text for text in found if not text.startswith("features:")]) > 1:
        raise ValueError(f"what: the logits are stored in one form, got {', '.join(found)}")
    for content in found.values():
        content.class_dim = class_dim
    return found


def _parse(text: str) -> Content:
    if text == "logits":
        return Whole()
    if text == "hidden" or (text.startswith("hidden:") and len(text) > len("hidden:")):
        return Hidden(text.removeprefix("hidden").removeprefix(":") or None)
    if text.startswith("features:") and len(text) > len("features:"):
        return Whole(text.removeprefix("features:"))
    form = _SPARSE.fullmatch(text)
    if form is None or int(form["k"]) < 1 or float(form["temperature"] or 1) <= 0:
        raise ValueError(
            "what: expected logits, hidden, hidden:TAP, topk:K, topk:K@TEMPERATURE, sample:K, sample:K@TEMPERATURE or "
            f"features:TAP with K >= 1, got {text!r}"
        )
    kind = TopK if form["kind"] == "topk" else Sample
    return kind(int(form["k"]), float(form["temperature"] or 1))
