"""Causal language models from a config, a folder and a GGUF file; adapters, ties, checkpointing."""

import json

import gguf
import numpy as np
import pytest
import torch
from kdx_text.causal_lm import causal_lm
from kdx_text.gguf_file import read_gguf_tokenizer
from kdx_text.language_tokenizers import train_tokenizer
from kdx_text.vocabulary import tokenizer_id

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
IDS = torch.tensor([[3, 1, 4, 1, 5, 9]])


def llama(**options):
    torch.manual_seed(0)
    return causal_lm(**({"config": LLAMA, "num_classes": 40, "input_shape": (6,)} | options))


def test_a_new_model_is_that_of_transformers_with_the_vocabulary_of_the_data() -> None:
    model = llama()
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.training
    assert model(IDS).logits.shape == (1, 6, 40)
    assert llama(config=LLAMA | {"vocab_size": 64})(IDS).logits.shape == (1, 6, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": None}, "give path=, a local folder or a GGUF file, or config= with a model_type"),
        ({"config": LLAMA | {"trust_remote_code": True}}, "LlamaConfig has no option 'trust_remote_code'"),
        ({"config": LLAMA | {"vocab_size": 30}}, "the model has 30 tokens and the data 40"),
        ({"input_shape": (129,)}, "rows have 129 tokens, the model takes 128"),
        ({"dtype": "int8"}, "dtype must be one of fp32, bf16, fp16, got 'int8'"),
        ({"lora": {"rank": 4}}, "lora: .*'rank'; its options are those of peft.LoraConfig"),
    ],
)
def test_what_cannot_be_is_said(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        llama(**options)


def test_a_folder_gives_the_model_that_was_saved(tmp_path) -> None:
    saved = llama(tie=True).eval()
    saved.save_pretrained(tmp_path)
    model = causal_lm(path=tmp_path, num_classes=40, input_shape=(6,))
    assert torch.equal(model(IDS).logits, saved(IDS).logits)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with pytest.raises(FileNotFoundError, match="give a local one, nothing is downloaded"):
        causal_lm(path=tmp_path / "nowhere", num_classes=40)
    with pytest.raises(ValueError, match="the model is of the type 'llama', not 'bert'"):
        causal_lm(path=tmp_path, config={"model_type": "bert"}, num_classes=40)


def test_a_folder_that_lacks_weights_is_refused(tmp_path) -> None:
    llama().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"has no weights for 'model.layers.2.* which would be drawn anew"):
        causal_lm(path=tmp_path, num_classes=40)


def test_code_that_comes_with_a_model_is_not_run(tmp_path) -> None:
    llama().save_pretrained(tmp_path)
    (tmp_path / "own.py").write_text("raise SystemExit('run')")
    config = json.loads((tmp_path / "config.json").read_text())
    named = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config | named))
    with pytest.raises(ValueError, match=r"trust_remote_code|custom code|does not recognize"):
        causal_lm(path=tmp_path, num_classes=40)


def test_the_output_layer_is_tied_untied_and_never_lost(tmp_path) -> None:
    tied = llama(tie=True)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    tied.save_pretrained(tmp_path / "tied")
    untied = causal_lm(path=tmp_path / "tied", tie=False, num_classes=40)
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    assert torch.equal(untied.lm_head.weight, untied.model.embed_tokens.weight)
    untied.save_pretrained(tmp_path / "untied")
    with pytest.raises(ValueError, match="has an output layer of its own, which would be lost"):
        causal_lm(path=tmp_path / "untied", tie=True, num_classes=40)


def test_adapters_alone_are_trained_and_checkpointing_gives_their_gradient(tmp_path) -> None:
    llama().save_pretrained(tmp_path)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        lora = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
        model = causal_lm(path=tmp_path, lora=lora, gradient_checkpointing=checkpointing, num_classes=40)
        trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
        assert trained
        assert all("lora_" in name for name in trained)
        model(IDS, use_cache=False).logits.logsumexp(-1).sum().backward()
        gradients.append({name: each.grad for name, each in trained.items()})
    assert any(each.abs().max() > 0 for each in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def test_the_dtype_is_that_of_the_weights() -> None:
    assert {each.dtype for each in llama(dtype="bf16").parameters()} == {torch.bfloat16}


def test_sizes_are_asked_for_without_memory(tmp_path) -> None:
    llama().save_pretrained(tmp_path)
    with torch.device("meta"):
        model = causal_lm(path=tmp_path, num_classes=40)
    assert all(each.is_meta for each in model.parameters())


@pytest.fixture
def gguf_path(tmp_path):
    """A tied Llama in GGUF with a byte-level BPE, one of its weights quantised to eight bits."""
    tokenizer = train_tokenizer(["to be or not to be, that is the question"] * 3, 280)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    model = causal_lm(config=LLAMA, tie=True, num_classes=len(tokens))
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in state])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = weight.numpy()
        if "q_proj" in name or "k_proj" in name:  # GGUF has the halves of a rotation beside each other
            array = array.reshape(2, 2, 8, 32).swapaxes(1, 2).reshape(32, 32)
        key = names.get_name(name, try_suffixes=(".weight",))
        kind = None
        if "down_proj" in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            array = gguf.quants.quantize(array, kind)
            weight.copy_(torch.from_numpy(gguf.quants.dequantize(array, kind)))
        writer.add_tensor(
            key + ".weight" if not key.endswith(".weight") else key, np.ascontiguousarray(array), raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model, tokenizer


def test_a_gguf_file_gives_a_plain_model_of_the_numbers_that_its_weights_stand_for(gguf_path) -> None:
    path, written, tokenizer = gguf_path
    model = causal_lm(path=path, num_classes=len(tokenizer), input_shape=(6,))
    assert torch.equal(model(IDS).logits, written(IDS).logits)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.float().half().dtype is torch.float16  # what transformers reads by itself refuses
    again = causal_lm(path=path, num_classes=len(tokenizer), input_shape=(6,))
    with torch.no_grad():
        again.lm_head.weight.zero_()
    assert causal_lm(path=path, num_classes=len(tokenizer)).lm_head.weight.abs().max() > 0


def test_a_gguf_file_has_its_tokenizer(gguf_path) -> None:
    path, _, tokenizer = gguf_path
    assert tokenizer_id(read_gguf_tokenizer(path)) == tokenizer_id(tokenizer)
    assert causal_lm(path=path, num_classes=len(tokenizer)).tokenizer_id == tokenizer_id(tokenizer)
    (path.parent / "none.gguf").write_bytes(b"GGUF nothing")
    with pytest.raises(ValueError, match="cannot be read as a language model in GGUF"):
        causal_lm(path=path.parent / "none.gguf", num_classes=40)
