"""The hooks of this package; it imports no torch and no transformers."""

from __future__ import annotations

from collections.abc import Iterable

from kdx import Spec, hookimpl


@hookimpl
def kdx_models() -> Iterable[Spec]:
    """Transformers with a task head."""
    return [
        Spec("hf-encoder", "kdx_text.encoder:HFEncoder", "a Hugging Face encoder with a head, from a folder or new"),
    ]


@hookimpl
def kdx_datasets() -> Iterable[Spec]:
    """Tokenised data sets."""
    return [
        Spec("text", "kdx_text.files:TextFiles", "labelled texts from CSV, TSV or JSON lines, tokenised"),
        Spec(
            "wordnet-glosses",
            "kdx_text.wordnet:WordNetGlosses",
            "WordNet nouns and their glosses in 25 classes, from the files of a WordNet installation",
            "Miller 1995, WordNet: a lexical database for English",
        ),
    ]
