"""kdx.Head on language models of Hugging Face: found, verified against the model's own logits, and refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import kdx
from kdx import Head, LinearLogits, Taps
from kdx.errors import CaptureError

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}


def make(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = GPT2 if name == "GPT2" else SIZES
    config = getattr(transformers, f"{name}Config")(**(sizes | {"pad_token_id": 0, "bos_token_id": 1} | options))
    cls = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    return getattr(transformers, cls)(config).eval()


def ids() -> dict[str, torch.Tensor]:
    tokens = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(1))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def whole(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**ids(), use_cache=False).logits


FAMILIES = {
    "Llama": {},
    "Llama tied": {"tie_word_embeddings": True},
    "Qwen3": {},
    "Gemma2": {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
    "Phi": {},
    "GPT2": {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_of_a_model_gives_its_logits_without_the_model_making_them(family: str) -> None:
    model = make(family.split(maxsplit=1)[0], **FAMILIES[family])
    layer = model.get_output_embeddings()
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    seen = []
    layer.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    captured = Taps(model, output=Head.of(model))(ids())
    held = captured.response("logits")
    assert isinstance(held, LinearLogits)
    assert [tuple(shape) for shape in seen] == [(2, 1, 50)], "one place of each sequence went through the head"
    assert held.weight is layer.weight
    torch.testing.assert_close(held.dense(), whole(model))


def test_scale_and_softcap_are_those_of_the_config() -> None:
    found = Head.of(make("Gemma2", **FAMILIES["Gemma2"])), Head.of(make("Granite", logits_scaling=4.0))
    assert (found[0].softcap, found[1].scale) == (3.0, 0.25)


@pytest.mark.parametrize("wrong", [{"scale": 1.01}, {"softcap": 30.0}, {"hidden": "model.layers.1"}])
def test_a_head_that_is_not_the_models_own_is_refused(wrong: dict[str, Any]) -> None:
    model = make("Llama")
    nn.init.normal_(model.lm_head.weight)
    given = {"hidden": "model.norm", "layer": "lm_head"} | wrong
    with pytest.raises(CaptureError, match="LlamaForCausalLM: its own last logits differ by"):
        Taps(model, output=Head(**given))(ids())


def test_the_check_is_made_in_the_first_pass_alone() -> None:
    model = make("Llama")
    taps = Taps(model, output=Head.of(model))
    taps(ids())
    taps.head = Head(taps.head.hidden, taps.head.layer, scale=2.0)
    assert taps(ids()).response("logits").scale == 2.0


def test_a_model_that_makes_all_its_logits_is_held_by_its_head_too() -> None:
    class Letters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(tokens))

    model, tokens = Letters(), torch.arange(6).view(2, 3)
    for hidden in ("embed", "head:input"):
        held = Taps(model, output=Head(hidden, "head"))(tokens).response("logits")
        torch.testing.assert_close(held.dense(), model(tokens))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_misfit(dtype: torch.dtype) -> None:
    model = make("Llama").to(dtype)
    held = Taps(model, output=Head.of(model))(ids()).response("logits")
    assert held.hidden.dtype == dtype
    assert held.dense().dtype == torch.float32


def test_autocast_is_no_misfit() -> None:
    model = make("Llama")
    with torch.autocast("cpu", torch.bfloat16):
        held = Taps(model, output=Head.of(model))(ids()).response("logits")
    assert held.weight.dtype == torch.float32


def test_hidden_states_come_from_all_places_where_the_tap_is_on_the_layer() -> None:
    model = make("Llama")
    held = Taps(model, output=Head("lm_head:input", "lm_head"))(ids()).response("logits")
    torch.testing.assert_close(held.dense(), whole(model))


def test_other_taps_are_captured_beside_the_head() -> None:
    model = make("Llama")
    captured = Taps(model, ("logits", "model.layers.0"), output=Head.of(model))(ids())
    assert list(captured) == ["model.layers.0"]
    alone = Taps(model, ("model.layers.0",), output=Head.of(model))(ids())
    assert list(alone.held) == [], "nobody asked for logits"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_beside_the_head_leave_it_plain_and_one_on_it_is_refused() -> None:
    peft = pytest.importorskip("peft")
    base = make("Llama")
    lora = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(target_modules=["q_proj"], r=2))
    held = Taps(lora, output=Head.of(lora))(ids()).response("logits")
    torch.testing.assert_close(held.dense(), whole(lora))
    on_it = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj", "lm_head"], r=2))
    with pytest.raises(CaptureError, match=r"lm_head' is peft's Linear, not a plain nn.Linear.*adapter on it.*Leave"):
        Taps(on_it, output=Head.of(on_it))


class Coded(torch.Tensor):
    """A weight of another class, as quantised ones are."""


def test_a_quantised_head_and_one_that_is_no_layer_are_refused() -> None:
    model = make("Llama")
    with pytest.raises(CaptureError, match=r"'model.norm' is transformers's LlamaRMSNorm, not a plain nn.Linear"):
        Taps(model, output=Head("model.norm", "model.norm"))
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.data.as_subclass(Coded), requires_grad=False)
    with pytest.raises(CaptureError, match=r"torch's Linear with a weight of Coded, not a plain nn.Linear"):
        Taps(model, output=Head("model.norm", "lm_head"))


def test_names_that_do_not_exist_are_refused_with_the_near_ones() -> None:
    model = make("Llama")
    with pytest.raises(CaptureError, match=r"'lm_haed' is no module of LlamaForCausalLM.*lm_head"):
        Taps(model, output=Head("model.norm", "lm_haed"))
    with pytest.raises(CaptureError, match=r"'model.nrom' names no module.*model.norm"):
        Taps(model, output=Head("model.nrom", "lm_head"))
    with pytest.raises(CaptureError, match=r"'model.layers.\*' are 2 taps; name one"):
        Taps(model, output=Head("model.layers.*", "lm_head"))


def test_a_model_that_does_not_say_its_head_is_asked_for_it() -> None:
    with pytest.raises(CaptureError, match=r"Sequential does not say.*kdx\.Head\(hidden=tap, layer=name\)"):
        Head.of(nn.Sequential(nn.Linear(2, 3)))


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"softcap": -1.0}])
def test_numbers_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected a"):
        Head("norm", "head", **options)


def test_a_component_that_reads_logits_is_refused_before_training() -> None:
    student, teacher = make("Llama"), make("Llama")
    knowledge = {"dkd": kdx.make("knowledge", "dkd")}
    for side in ("student", "teacher"):
        head = {f"{side}_output": Head.of(student)}
        with pytest.raises(
            ValueError, match=rf"knowledge 'dkd' \(DKD\) reads the tensor of the {side}'s 'logits'.*soft"
        ):
            kdx.Offline(student, teacher, task=None, knowledge=knowledge, **head)
