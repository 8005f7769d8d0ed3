"""Logits that are held as hidden states and a head are nowhere made whole: every allocation of a step is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.profiler import ProfilerActivity, profile

import kdx
from kdx.ops._linear_kl import chunks
from kdx.tasks import token_judge

V, ROWS, LENGTH = 2000, 2, 128
WHOLE = 4 * ROWS * LENGTH * V
"""Bytes of the logits of a batch in float32."""


def llama(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = transformers.LlamaConfig(vocab_size=V, num_hidden_layers=1, tie_word_embeddings=True, **sizes)
    return transformers.LlamaForCausalLM(config)


def peak(run: Callable[[], Any]) -> int:
    """Bytes that torch holds at most beyond what it held before."""
    run()  # whatever is made on first use
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [each for each in seen.profiler.kineto_results.events() if each.name() == "[memory]"]
    assert events
    held = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", WHOLE // 16)
    monkeypatch.setattr(token_judge, "CHUNK_BYTES", WHOLE // 16)


@pytest.mark.usefixtures("small_chunks")
def test_a_step_and_an_evaluation_hold_a_fraction_of_one_sides_logits() -> None:
    student, teacher = llama(0), llama(1)
    ids = torch.randint(V, (ROWS, LENGTH))
    batch, task = {"input_ids": ids, "labels": ids}, kdx.make("task", "causal-lm")
    knowledge = {"kd": (0.5, kdx.SoftTargets(1.0))}

    def step(**heads: Any) -> Callable[[], None]:
        distil = kdx.Offline(student, teacher, task=(0.5, task), knowledge=knowledge, **heads)

        def run() -> None:
            distil(batch).total.backward()
            distil.zero_grad(set_to_none=True)

        return run

    heads = {"student_output": kdx.Head.of(student), "teacher_output": kdx.Head.of(teacher)}
    assert peak(step()) > 3 * WHOLE
    assert peak(step(**heads)) < WHOLE / 3
    for output, least, most in ((None, WHOLE, 9 * WHOLE), (kdx.Head.of(student), 0, WHOLE / 3)):
        options = {"metrics": task.metrics, "output": output}
        found = peak(lambda options=options: kdx.training.evaluate(student, [batch], **options))
        assert least <= found < most
