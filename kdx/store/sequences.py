"""Sequences of different length: which places of a batch hold a token, and rows stored without their padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdx.errors import StoreError
from kdx.layout import Layout, UnknownLayout

__all__ = ["check_lengths", "is_sequence", "padded", "places_of", "spread_over", "stretches"]


def places_of(inputs: Any) -> Tensor | None:
    """Says which places of a batch of sequences hold a token, bool ``[N, L]`` on the CPU; None: they are no sequences.

    Those are where the item ``attention_mask`` is not 0; without one, every place of token ids (a tensor of whole
    numbers ``[N, L]``, the first of a tuple, the item ``input_ids``). Inputs with an item ``decoder_...`` are none:
    their outputs have other places than the ids.

    Example:
        >>> places_of({"input_ids": torch.tensor([[5, 7, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])})
        tensor([[ True,  True, False]])
    """
    ids = inputs
    if isinstance(inputs, Mapping):
        if any(str(name).startswith("decoder_") for name in inputs):
            return None
        mask = inputs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return mask.detach().cpu() != 0
        ids = inputs.get("input_ids")
    elif isinstance(inputs, tuple | list):
        ids = inputs[0] if inputs else None
    if isinstance(ids, Tensor) and ids.dim() == 2 and not ids.is_floating_point() and ids.dtype != torch.bool:
        return torch.ones(ids.shape, dtype=torch.bool)
    return None


def is_sequence(value: Tensor, places: Tensor | None, layout: Layout | UnknownLayout | None = None) -> bool:
    """Whether a tensor to be stored holds something for each place, ``[N, L, ...]`` with three axes.

    Args:
        value: the tensor.
        places: see :func:`places_of`.
        layout: what its axes mean, as far as it is known.
    """
    if places is None or value.dim() != 3 or value.shape[:2] != places.shape:
        return False
    return not isinstance(layout, Layout) or layout.axes == "nlc"


def stretches(starts: Tensor, lengths: Tensor) -> Tensor:
    """The numbers ``start .. start + length - 1`` of each pair one after the other, int64.

    Example:
        >>> stretches(torch.tensor([7, 2]), torch.tensor([2, 3])).tolist()
        [7, 8, 2, 3, 4]
    """
    before = lengths.cumsum(0) - lengths
    return torch.repeat_interleave(starts - before, lengths) + torch.arange(int(lengths.sum()))


def padded(lengths: Tensor) -> Tensor:
    """The places of rows that are padded behind to the longest, bool ``[N, L]``."""
    return torch.arange(int(lengths.max())) < lengths[:, None]


def spread_over(places: Tensor, value: Tensor) -> Tensor:
    """Rows one after the other, ``[sum of lengths, ...]``, put where the places are: ``[N, L, ...]``, 0 elsewhere."""
    result = value.new_zeros((*places.shape, *value.shape[1:]))
    result[places] = value
    return result


def check_lengths(places: Tensor, lengths: Tensor, index: Tensor, folder: object) -> None:
    """Compares the tokens that a batch has in each row with those that are stored.

    Raises:
        StoreError: one has others, cut by the store, by the batch, or padded without a mask that says so.
    """
    here = places.sum(1)
    wrong = (here != lengths).nonzero().flatten()
    if not len(wrong):
        return
    row = int(wrong[0])
    ours, stored = int(here[row]), int(lengths[row])
    who = f"sample {int(index[row])} ({len(wrong)} of {len(lengths)} samples of this batch)"
    if ours > stored:
        raise StoreError(
            f"sequences cut by the store {folder}: {who} has {ours} tokens in the batch and {stored} in the store. "
            "Write the store for sequences of that length; if the rest is padding, give the inputs an item "
            "attention_mask that is 0 there"
        )
    raise StoreError(
        f"sequences cut by the batch: {who} has {ours} tokens in the batch and {stored} in the store {folder}; cut the "
        "data as they were when the store was written, or write a store for these"
    )
