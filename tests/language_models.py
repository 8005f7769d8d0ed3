"""Small language models and rows of tokens that several tests use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import kdx

VOCABULARY = 11
END = 10


class Causal(nn.Module):
    """A causal model of two layers with dropout: logits ``[N, L, V]`` of token ids ``[N, L]``, in float64."""

    def __init__(self, width: int = 6, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(VOCABULARY, width), nn.Linear(width, VOCABULARY)
        self.drop = nn.Dropout(dropout)
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids).cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]
        return self.head(self.drop(3 * hidden))


class Written(nn.Module):
    """A model that writes a text whatever its prompt is: after place t comes ``text[t + 1]``."""

    def __init__(self, text: list[int]) -> None:
        super().__init__()
        self.text = torch.tensor(text)
        self.scale = nn.Parameter(torch.tensor(50.0, dtype=torch.float64))

    def forward(self, ids: Tensor) -> Tensor:
        rows, length = ids.shape
        after = self.text[torch.arange(length) + 1]
        return self.scale * nn.functional.one_hot(after, VOCABULARY).double().expand(rows, -1, -1)


def tokens(rows: int = 4, length: int = 9, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Ids, and labels in which prompts of two tokens and more, and some padding, are -100."""
    ids = torch.randint(END, (rows, length), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    for row in range(rows):
        labels[row, : 2 + row % 3] = -100
        labels[row, length - row % 2 :] = -100
    return ids, labels


def batches(count: int = 4, rows: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Some batches of :func:`tokens`."""
    return [tokens(rows, seed=seed) for seed in range(count)]


def llama(seed: int = 0, width: int = 16, layers: int = 1, **options: object) -> nn.Module:
    """A small random model of Hugging Face."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    given = {"vocab_size": VOCABULARY, "eos_token_id": END, "pad_token_id": 0, "bos_token_id": 1} | options
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **given))


def hf_batch(rows: int = 4, seed: int = 1) -> dict[str, Tensor]:
    """A batch as collators of Hugging Face give it, with rows of different length."""
    ids, labels = tokens(rows, seed=seed)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, ids.shape[1] - row % 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def of(value: object) -> kdx.Batch:
    """A batch of what a loader gives."""
    return kdx.Batch.of(value)
