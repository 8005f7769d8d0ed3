"""Documents packed in one row of a batch, and a mask beside them that makes models overlook it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from kdx.batch import Batch
from kdx.beside_inputs import call_names
from kdx.capture import unwrap

__all__ = ["overlooked_documents"]


def overlooked_documents(batch: Batch, models: Iterable[nn.Module]) -> str | None:
    """Says what is wrong with ``position_ids`` that begin anew within a row; None where nothing is.

    Models of Hugging Face transformers keep the documents of a row apart by their ``position_ids`` alone, and only
    where there is no attention mask ``[B, T]``. Positions that fall between two tokens that the mask shows are another
    document; at the edge of padding they may.

    Args:
        batch: of which the inputs are looked at.
        models: those that it is for; other models than those of Hugging Face may have ways of their own.
    """
    inputs = batch.inputs
    if not isinstance(inputs, Mapping) or not any("use_cache" in call_names(unwrap(model)) for model in models):
        return None
    positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
    if not isinstance(positions, Tensor) or not isinstance(mask, Tensor) or positions.shape != mask.shape:
        return None
    shown = mask != 0
    anew = (positions[..., 1:] <= positions[..., :-1]) & shown[..., 1:] & shown[..., :-1]
    if not bool(anew.any()):
        return None
    return (
        f"position_ids begin anew within row {int(anew.nonzero()[0, 0])}, so that documents are packed in it, and "
        "with an attention_mask beside them models of transformers do not look for that: the documents would see each "
        "other. Leave attention_mask out (labels of -100 mark padding), as DataCollatorWithFlattening does"
    )
