"""A recipe of language models: documents, a teacher from a folder, a student from a config, packed rows."""

import json

import pytest
import torch
from kdx_text.causal_lm import causal_lm
from kdx_text.token_stream import TokenStream
from transformers import AutoModelForCausalLM, AutoTokenizer

import kdx

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@pytest.fixture
def recipe(tmp_path):
    """Of 90 documents, with a trained teacher of the same tokenizer in a folder."""
    (tmp_path / "texts").mkdir()
    for a in range(2, 12):
        for b in range(2, 11):
            (tmp_path / "texts" / f"{a}-{b}.txt").write_text(f"{a} times {b} is {a * b}. " * 3)
    data = TokenStream(documents=tmp_path / "texts", vocabulary=270, length=24)
    torch.manual_seed(0)
    causal_lm(config=LLAMA, tie=True, num_classes=len(data.tokenizer)).save_pretrained(tmp_path / "teacher")
    data.save_tokenizer(tmp_path / "teacher")
    source = {"name": "token-stream", "documents": str(tmp_path / "texts"), "vocabulary": 270, "length": 24}
    return {
        "data": {"dataset": source, "validation": 16},
        "teacher": {"model": {"name": "hf-causal-lm", "path": str(tmp_path / "teacher")}, "train": "none"},
        "student": {"model": {"name": "hf-causal-lm", "config": LLAMA, "tie": True}},
        "task": {"name": "causal-lm", "weight": 0.5},
        "knowledge": {"kd": {"name": "soft-targets", "weight": 0.5, "temperature": 1.0}},
        "train": {"epochs": 2, "batch_size": 16, "optimizer": {"name": "AdamW", "lr": 1.0e-2}},
        "device": "cpu",
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")
def test_a_recipe_runs_and_its_student_is_loaded_again(recipe, tmp_path) -> None:
    summary = kdx.run(recipe, folder=tmp_path / "run")
    assert list(summary["stages"]) == ["teacher", "alone", "distilled"]
    assert summary["stages"]["distilled"]["test"].keys() == {
        "cross_entropy",
        "perplexity",
        "bits_per_byte",
        "accuracy",
    }
    student = kdx.load(tmp_path / "run")
    assert type(student.model).__name__ == "LlamaForCausalLM"
    path, difference = kdx.export(tmp_path / "run", "hf")
    assert difference <= 1e-6
    again, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    ids = torch.tensor([tokenizer("2 times 3 is 6.")["input_ids"]])
    assert torch.equal(again(ids).logits, student(ids))
    assert again.lm_head.weight is again.model.embed_tokens.weight


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")
def test_adapters_are_trained_in_a_recipe_and_merged_on_the_way_out(recipe, tmp_path) -> None:
    teacher = recipe["teacher"]["model"]["path"]
    lora = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    recipe["student"]["model"] = {"name": "hf-causal-lm", "path": teacher, "lora": lora, "gradient_checkpointing": True}
    recipe["knowledge"]["kd"]["temperature"] = 2.0
    kdx.run(recipe | {"controls": []}, folder=tmp_path / "run")
    student = kdx.load(tmp_path / "run")
    base = AutoModelForCausalLM.from_pretrained(teacher)
    kept = {name: each for name, each in student.model.get_base_model().state_dict().items() if "lora" not in name}
    for name, weight in base.state_dict().items():
        assert torch.equal(kept[name if name in kept else name.replace("proj.", "proj.base_layer.")], weight)
    ids = torch.tensor([[3, 1, 4]])
    assert not torch.allclose(student(ids), base(ids).logits, atol=1e-4)
    path, difference = kdx.export(tmp_path / "run", "hf")
    assert difference <= 1e-5
    again = AutoModelForCausalLM.from_pretrained(path)
    assert again.state_dict().keys() == base.state_dict().keys()
    torch.testing.assert_close(again(ids).logits, student(ids), rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["metric"] == "cross_entropy"
