"""Real models of transformers and peft under kdx.fit: checkpointing, bf16, adapters, tied embeddings, exact resume."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

import kdx
from kdx.errors import Interrupted
from tests.stopping import Stop


def llama(seed: int, **options: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**({"vocab_size": 40, "num_key_value_heads": 2} | sizes | options)))


def with_adapters(seed: int) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(llama(seed), settings)


def checkpointed(model: LlamaForCausalLM) -> LlamaForCausalLM:
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    return model


STUDENTS = {
    "plain": lambda: llama(0),
    "checkpointed": lambda: checkpointed(llama(0)),
    "tied": lambda: llama(0, tie_word_embeddings=True),
    "bf16": lambda: llama(0).bfloat16(),
    "adapters": lambda: with_adapters(0),
    "dropout": lambda: llama(0, attention_dropout=0.2),
}


def loader() -> DataLoader:
    ids = torch.randint(40, (12, 10), generator=torch.Generator().manual_seed(3))
    rows = []
    for number, row in enumerate(ids):
        labels = row.clone()
        labels[: number % 7] = -100
        rows.append({"input_ids": row, "labels": labels})
    return DataLoader(rows, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(0))


def scheme(student: torch.nn.Module) -> kdx.Offline:
    adapters = hasattr(student, "disable_adapter")
    teacher = kdx.teachers.Frozen(student, adapter="off") if adapters else llama(1)
    task = kdx.make("task", "causal-lm")
    return kdx.Offline(student, teacher, task=(0.5, task), knowledge={"kd": (0.5, kdx.SoftTargets(2.0))})


def fit(student: torch.nn.Module, folder: Path, **options: Any) -> Any:
    given = {"epochs": 2, "accumulate": 2, "optimizer": kdx.Ref("AdamW", lr=1e-2), "seed": 7, "device": "cpu"}
    return kdx.fit(scheme(student), loader(), folder=folder, progress=False, **given, **options)


@pytest.mark.parametrize("kind", STUDENTS)
def test_a_run_that_was_stopped_ends_with_the_bits_of_the_whole_one(kind: str, tmp_path) -> None:
    whole = STUDENTS[kind]()
    before = copy.deepcopy(whole.state_dict())
    assert fit(whole, tmp_path / "whole").step == 6
    with pytest.raises(Interrupted, match="after step 4 of 6"):
        fit(STUDENTS[kind](), tmp_path / "broken", observers=[Stop(4)])
    resumed = STUDENTS[kind]()
    assert fit(resumed, tmp_path / "broken", resume=True).step == 6
    after = whole.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in resumed.state_dict().items())
    assert any(not torch.equal(weight, before[name]) for name, weight in after.items())
    trained = {name for name, each in whole.named_parameters() if each.requires_grad}
    if kind == "adapters":
        assert all("lora_" in name for name in trained)
        assert all(torch.equal(weight, before[name]) for name, weight in after.items() if "lora_" not in name)
    if kind == "tied":
        assert whole.lm_head.weight is whole.model.embed_tokens.weight
    if kind == "bf16":
        assert all(weight.dtype is torch.bfloat16 for weight in whole.parameters())
    if kind == "checkpointed":
        plain = llama(0)
        fit(plain, tmp_path / "plain")
        assert all(torch.equal(weight, after[name]) for name, weight in plain.state_dict().items())
