"""The hooks of this package; it imports no torch and no transformers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kdx import Spec, hookimpl


@hookimpl
def kdx_models() -> Iterable[Spec]:
    """Transformers with a task head."""
    return [
        Spec("hf-encoder", "kdx_text.encoder:HFEncoder", "a Hugging Face encoder with a head, from a folder or new"),
        Spec(
            "hf-causal-lm",
            "kdx_text.causal_lm:causal_lm",
            "a causal language model of Hugging Face from a folder, a GGUF file or a config",
        ),
        Spec(
            "smollm2",
            "kdx_text.smollm2:smollm2",
            "SmolLM2-135M-Instruct from the package that holds its weights",
            "Allal et al. 2025, arXiv:2502.02737",
        ),
        Spec(
            "minilm",
            "kdx_text.minilm:MiniLM",
            "all-MiniLM-L6-v2 with a head, from the package that holds its weights",
            "Wang et al. 2020, arXiv:2002.10957",
        ),
    ]


@hookimpl
def kdx_datasets() -> Iterable[Spec]:
    """Tokenised data sets."""
    return [
        Spec("token-stream", "kdx_text.token_stream:TokenStream", "documents as rows of tokens for language models"),
        Spec(
            "shakespeare",
            "kdx_text.shakespeare:Shakespeare",
            "the works of Shakespeare as rows of tokens, four plays for the test",
        ),
        Spec(
            "two-tokenizers",
            "kdx_text.two_tokenizers:TwoTokenizerTexts",
            "documents in the tokens of a student and of a teacher with another tokenizer, aligned",
        ),
        Spec("text", "kdx_text.files:TextFiles", "labelled texts from CSV, TSV or JSON lines, tokenised"),
        Spec("hf", "kdx_text.hf:HFTexts", "labelled texts of Hugging Face datasets in a local folder, tokenised"),
        Spec(
            "wordnet-glosses",
            "kdx_text.wordnet:WordNetGlosses",
            "WordNet nouns and their glosses in 25 classes, from the files of a WordNet installation",
            "Miller 1995, WordNet: a lexical database for English",
        ),
        Spec(
            "wordnet-pieces",
            "kdx_text.pieces:WordNetPieces",
            "the noun glosses that kdx carries, in the tokens of all-MiniLM-L6-v2 and in whole words",
            "Miller 1995, WordNet: a lexical database for English",
        ),
    ]


@hookimpl
def kdx_recipes() -> Iterable[Path]:
    """The recipe with SmolLM2."""
    return sorted((Path(__file__).parent / "recipes").glob("*.yaml"))
