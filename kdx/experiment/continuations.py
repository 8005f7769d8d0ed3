"""Text that language models write, for a report: numbers alone do not show what a student has learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from kdx.batch import Batch
from kdx.datasets.generation import ends_of, generator_of

__all__ = ["continuations"]

PROMPTS, PROMPT, NEW = 2, 24, 40
"""How many are written, and the most tokens that a prompt has and that are written."""


def continuations(student: nn.Module, rows: Dataset[Batch]) -> list[dict[str, str]]:
    """Continuations of the beginnings of test rows by a causal language model, one token drawn after another.

    The seeds of the draws are the same for every model and in every run; nothing about the model changes.

    Args:
        student: the model.
        rows: those of the test, as a :class:`kdx.datasets.View`. Its data set decodes tokens by ``decode(ids) -> str``.

    Returns:
        A ``prompt`` and the ``text`` behind it, of each; none of data without ``decode``.
    """
    decode = getattr(getattr(rows, "dataset", None), "decode", None)
    length = len(rows)  # type: ignore[arg-type]  # a view has a length
    if decode is None or not length:
        return []
    ends = ends_of(student)
    device = next((each.device for each in student.parameters()), torch.device("cpu"))
    written = []
    for place in range(0, length, max(1, length // PROMPTS))[:PROMPTS]:
        ids = _ids(rows[place].inputs)
        size = min(PROMPT, len(ids) // 2)
        prompt = ids[None, :size].to(device)
        found = generator_of(student, ends=ends, pad=ends[0] if ends else 0).generate(
            prompt,
            torch.ones_like(prompt),
            max_new_tokens=min(NEW, len(ids) - size),
            temperature=1.0,
            top_p=0.9,
            generator=torch.Generator(device).manual_seed(place),
        )
        new = [token for token in found[0, size:].tolist() if token >= 0]
        written.append({"prompt": decode(prompt[0].tolist()), "text": decode(new)})
    return written


def _ids(inputs: Any) -> Tensor:
    found: Tensor = inputs["input_ids"] if isinstance(inputs, Mapping) else inputs
    return found
