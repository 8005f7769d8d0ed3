"""The real SFTTrainer of trl with a scheme: completion masks, and a student with adapters that learns from its base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import kdx
from kdx.hf import DistillationMixin
from tests.hf.test_mixin import llama, scheme

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]


class DistilSFT(DistillationMixin, SFTTrainer):
    """The SFTTrainer of trl with a scheme."""


WORDS = ["what", "is", "two", "times", "three", "four", "six", "eight", "and", "so", "on"]
ROWS = [
    {"prompt": "what is two times three ", "completion": "six"},
    {"prompt": "two ", "completion": "and two times four is eight and so on and so on"},
]


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"[PAD]": 0, "[EOS]": 1} | {word: number for number, word in enumerate(dict.fromkeys(WORDS), start=2)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", eos_token="[EOS]")


def trainer(tmp_path, student, distil, **options: Any) -> DistilSFT:
    settings = {"max_steps": 1, "learning_rate": 0.5, "optim": "sgd", "max_grad_norm": 0.0, "use_cpu": True}
    settings |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
    settings |= {"lr_scheduler_type": "constant", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    settings |= {"bf16": False, "activation_checkpointing": False, "completion_only_loss": True}
    peft = options.pop("peft_config", None)
    return DistilSFT(
        student,
        SFTConfig(output_dir=str(tmp_path), **(settings | options)),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer(),
        peft_config=peft,
        distil=distil,
    )


def test_completions_alone_are_taught_and_a_step_is_that_of_one_batch(tmp_path) -> None:
    student, teacher = llama(0), llama(1)
    made = trainer(tmp_path, student, lambda model: scheme(model, teacher))
    collated = [made.data_collator([row]) for row in made.train_dataset]
    counts = [int((each["labels"] != -100).sum()) for each in collated]
    assert counts[0] == 2  # six and the end
    one = made.data_collator(list(made.train_dataset))
    losses = scheme(student, teacher)(one)
    assert losses.counts["task"] == sum(counts)
    losses.total.backward()
    expected = {name: (each - 0.5 * each.grad).detach() for name, each in student.named_parameters()}
    student.zero_grad()
    made.train()
    for name, weight in student.named_parameters():
        torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-5, atol=1e-7)
    logged = made.state.log_history[0]
    assert logged["loss"] == pytest.approx(float(losses.total.detach()), rel=1e-5)
    assert made.evaluate()["eval_kd"] > 0


def test_a_student_with_adapters_learns_from_its_own_base(tmp_path) -> None:
    base = llama(0)
    before = {name: each.clone() for name, each in base.state_dict().items()}
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)

    def distil(student):
        return scheme(student, kdx.teachers.Frozen(student, adapter="off"))

    made = trainer(tmp_path, base, distil, peft_config=lora, save_strategy="steps", save_steps=1)
    made.train()
    assert made.state.log_history[0]["kd"] > 0
    trained = {name: each for name, each in made.model.named_parameters() if each.requires_grad}
    assert all("lora" in name for name in trained)
    kept = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): each
        for name, each in made.model.state_dict().items()
    }
    assert all(torch.equal(kept[name], weight) for name, weight in before.items())
    found = torch.as_tensor(made.predict(made.train_dataset).predictions)
    with torch.no_grad():
        ids = torch.as_tensor(made.train_dataset[0]["input_ids"])[None]
        own = made.model.eval()(ids).logits[0]
    torch.testing.assert_close(found[0, : ids.shape[1]], own, rtol=1e-4, atol=1e-4)  # the student's, not its base's
    saved = {path.name for path in (tmp_path / "checkpoint-1").iterdir()}
    assert "adapter_model.safetensors" in saved
    assert "model.safetensors" not in saved
