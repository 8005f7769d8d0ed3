"""The real collators of transformers and trl are taken as they are: their batches give the loss of the documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as TrlCollator

import kdx
from kdx.batch import Batch

PROMPTS = (0, 3, 5)
"""Tokens of each document that are no labels."""


def llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, num_key_value_heads=2, pad_token_id=0, **sizes)).double()


def documents(*, labels: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number, length in enumerate((9, 4, 7)):
        ids = torch.randint(1, 40, (length,), generator=torch.Generator().manual_seed(number)).tolist()
        found.append({"input_ids": ids, "attention_mask": [1] * length})
        if labels:
            found[-1]["labels"] = [-100] * PROMPTS[number] + ids[PROMPTS[number] :]
    return found


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({"[PAD]": 0} | {f"w{number}": number for number in range(1, 40)}, "[PAD]"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]")


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without a mask, as collators that make none want them."""
    return [{key: each for key, each in row.items() if key != "attention_mask"} for row in rows]


COLLATORS: dict[str, tuple[Callable[[], Any], bool]] = {
    "transformers, language modeling": (lambda: DataCollatorForLanguageModeling(tokenizer(), mlm=False), False),
    "transformers, seq2seq": (lambda: DataCollatorForSeq2Seq(tokenizer()), True),
    "transformers, flattening": (DataCollatorWithFlattening, True),
    "transformers, flattening for flash attention": (
        lambda: DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True),
        True,
    ),
    "trl": (lambda: TrlCollator(pad_token_id=0), True),
    "trl, padding free": (lambda: TrlCollator(pad_token_id=0, padding_free=True), True),
}


@pytest.mark.parametrize("name", COLLATORS)
def test_the_terms_are_those_of_the_documents_and_a_run_takes_the_batches(name: str) -> None:
    make, labels = COLLATORS[name]
    collator, rows = make(), documents(labels=labels)
    rows = plain(rows) if "trl" in name or "flattening" in name else rows
    student, teacher = llama(0), llama(1)
    task = kdx.make("task", "causal-lm")
    distil = kdx.Offline(student, teacher, task=(0.5, task), knowledge={"kd": (0.5, kdx.SoftTargets(1.0))})
    sums, count = {"task": 0.0, "kd": 0.0}, 0
    for row in rows:
        ids = torch.tensor(row["input_ids"])[None]
        alone = distil(Batch({"input_ids": ids}, torch.tensor(row.get("labels", row["input_ids"]))[None]))
        tokens = int(alone.counts["task"])
        count += tokens
        sums = {key: total + float(alone.terms[key].detach()) * tokens for key, total in sums.items()}
    batch = collator([dict(row) for row in rows])
    found = distil(batch)
    assert int(found.counts["task"]) == count
    for key, total in sums.items():
        torch.testing.assert_close(float(found.terms[key].detach()), total / count, rtol=1e-7, atol=0)
    loader = DataLoader(rows * 2, batch_size=3, collate_fn=collator)
    run = kdx.fit(distil, loader, evaluate=loader, epochs=1, device="cpu", select="cross_entropy", progress=False)
    assert run.step == 2
    assert run.history[-1]["student/cross_entropy"] > 0


def test_a_part_of_packed_documents_keeps_their_lengths_whole() -> None:
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    batch = Batch.of(collator(plain(documents(labels=True))))
    part = batch.at(slice(0, 1))
    assert torch.equal(part.inputs["cu_seq_lens_q"], batch.inputs["cu_seq_lens_q"])
    assert part.inputs["max_length_q"] == batch.inputs["max_length_q"]
    assert part.rows == batch.rows == 1
