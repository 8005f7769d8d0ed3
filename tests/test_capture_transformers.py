"""Taps on Hugging Face transformers: hidden states, attentions, outputs that are objects."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

import kdx
from kdx.capture import Taps


def bert(hidden: int, layers: int) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=16,
        num_labels=3,
        attn_implementation="eager",
    )
    return transformers.BertForSequenceClassification(config)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    tokens = torch.randint(50, (6, 9))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.arange(6) % 3}


def test_hidden_states_and_attentions_are_taps(batch) -> None:
    model = bert(8, 3).eval()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    captured = Taps(model, ["bert.encoder.layer.*", "bert.encoder.layer.1.attention.self[1]"])(inputs)
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True, output_attentions=True)
    for hidden, tapped in zip(expected.hidden_states[1:], captured.select("bert.encoder.layer.*"), strict=True):
        torch.testing.assert_close(tapped, hidden)
    torch.testing.assert_close(captured["bert.encoder.layer.1.attention.self[1]"], expected.attentions[1])
    torch.testing.assert_close(captured.logits, expected.logits)


def test_a_transformer_distils_from_batches_of_a_tokenizer(batch) -> None:
    last = "bert.encoder.layer.{}"
    scheme = kdx.Offline(
        bert(8, 2),
        bert(12, 4),
        knowledge={
            "kd": (1.0, kdx.SoftTargets(2.0)),
            "hint": (1.0, kdx.Hint(student=last.format(1), teacher=last.format(3))),
        },
    )
    run = kdx.fit(scheme, [batch], epochs=3, evaluate=[batch])
    assert run.step == 3
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in scheme.parameters())
