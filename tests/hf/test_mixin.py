"""A scheme as the loss of the real Trainer and SFTTrainer: exact steps, evaluation, checkpoints, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import kdx
from kdx.hf import DistillationMixin
from kdx.schemes.weights import Warmup

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]
LABELLED = (26, 3)


class Distil(DistillationMixin, Trainer):
    """The Trainer of transformers with a scheme."""


def llama(seed: int, **options: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**({"vocab_size": 40, "num_key_value_heads": 2} | sizes | options)))


def rows() -> list[dict[str, torch.Tensor]]:
    """Two rows of 28 tokens of which 26 and 3 are labelled and predicted."""
    found = []
    for seed, count in enumerate(LABELLED):
        ids = torch.randint(40, (28,), generator=torch.Generator().manual_seed(seed))
        labels = ids.clone()
        labels[: 28 - count] = -100
        found.append({"input_ids": ids, "labels": labels})
    return found


def scheme(student: torch.nn.Module, teacher: torch.nn.Module, **options: Any) -> kdx.Offline:
    task, knowledge = kdx.make("task", "causal-lm"), {"kd": (0.7, kdx.SoftTargets(temperature=2.0))}
    return kdx.Offline(student, teacher, **({"task": (0.3, task), "knowledge": knowledge} | options))


def trainer(tmp_path, student, teacher, kind=Distil, data=None, make=scheme, **options: Any):
    settings = {"max_steps": 1, "learning_rate": 0.5, "optim": "sgd", "max_grad_norm": 0.0, "use_cpu": True}
    settings |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
    settings |= {"lr_scheduler_type": "constant", "per_device_train_batch_size": 1}
    arguments = TrainingArguments(output_dir=str(tmp_path), **(settings | options))
    data = rows() if data is None else data
    return kind(student, arguments, train_dataset=data, eval_dataset=data, distil=lambda model: make(model, teacher))


def of_one_batch(student: torch.nn.Module, teacher: torch.nn.Module) -> tuple[dict[str, torch.Tensor], Any]:
    """The weights after a step on both rows as one batch, by hand, and its losses."""
    student = copy.deepcopy(student)
    one = {key: torch.stack([row[key] for row in rows()]) for key in ("input_ids", "labels")}
    losses = scheme(student, teacher)(one)
    losses.total.backward()
    with torch.no_grad():
        for weight in student.parameters():
            weight.sub_(0.5 * weight.grad)
    return student.state_dict(), losses


def test_accumulation_over_26_and_3_tokens_is_one_batch_of_29(tmp_path) -> None:
    student, teacher = llama(0), llama(1)
    before = copy.deepcopy(teacher.state_dict())
    expected, losses = of_one_batch(student, teacher)
    made = trainer(tmp_path, student, teacher, gradient_accumulation_steps=2)
    made.train()
    for name, weight in student.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-7)
    logged = made.state.log_history[0]
    assert logged["loss"] == pytest.approx(float(losses.total.detach()), rel=1e-5)
    assert logged["kd"] == pytest.approx(float(losses.terms["kd"].detach()), rel=1e-5)
    assert logged["task"] == pytest.approx(float(losses.terms["task"].detach()), rel=1e-5)
    assert all(torch.equal(before[name], weight) for name, weight in teacher.state_dict().items())
    assert not teacher.training


def test_the_step_of_each_row_by_itself_is_another(tmp_path) -> None:
    """The mean of the two rows' means, which the exact step must not be."""
    student, teacher = llama(0), llama(1)
    expected, _ = of_one_batch(student, teacher)
    losses = [scheme(student, teacher)({key: each[None] for key, each in row.items()}).total for row in rows()]
    (sum(losses) / 2).backward()
    weight = student.lm_head.weight
    assert not torch.allclose(weight.detach() - 0.5 * weight.grad, expected["lm_head.weight"], rtol=1e-2, atol=1e-5)


def test_evaluation_is_a_mean_over_all_tokens_and_keeps_modes(tmp_path) -> None:
    student, teacher = llama(0), llama(1)
    _, losses = of_one_batch(student, teacher)
    made = trainer(tmp_path, student, teacher, per_device_eval_batch_size=1)
    found = made.evaluate()
    assert found["eval_loss"] == pytest.approx(float(losses.total.detach()), rel=1e-5)
    assert found["eval_kd"] == pytest.approx(float(losses.terms["kd"].detach()), rel=1e-5)
    assert found["eval_task"] == pytest.approx(float(losses.terms["task"].detach()), rel=1e-5)
    seen = []
    made.compute_metrics = lambda given: seen.append(given.predictions.shape) or {}
    assert made.evaluate(metric_key_prefix="test")["test_loss"] == found["eval_loss"]
    assert seen == [(2, 28, 40)]


def test_checkpoints_hold_the_student_alone_and_a_run_goes_on_from_them(tmp_path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "gradient_accumulation_steps": 2}
    whole = trainer(tmp_path / "a", llama(0), llama(1), **settings)
    whole.train()
    saved = load_file(tmp_path / "a" / "checkpoint-1" / "model.safetensors")
    assert saved.keys() == llama(0).state_dict().keys()
    again = trainer(tmp_path / "b", llama(5), llama(1), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))
    for name, weight in again.model.state_dict().items():
        assert torch.equal(weight, whole.model.state_dict()[name])


def test_a_scheduled_weight_moves_with_the_steps(tmp_path) -> None:
    seen = []

    def make(student, teacher):
        made = scheme(student, teacher, knowledge={"kd": (Warmup(1.0, steps=4), kdx.SoftTargets(1.0))})
        made.register_forward_pre_hook(lambda module, given: seen.append(float(module._weight_kd)))
        return made

    trainer(tmp_path, llama(0), llama(1), make=make, max_steps=3).train()
    assert seen[-3:] == [0.0, 0.25, 0.5]


def test_token_ids_beyond_the_vocabulary_are_named_before_training(tmp_path) -> None:
    data = rows()
    data[0]["labels"][-1] = 40
    data[1]["labels"][-1] = 40
    made = trainer(tmp_path, llama(0), llama(1), data=data)
    with pytest.raises(ValueError, match="40"):
        made.train()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda student, teacher: scheme(copy.deepcopy(student), teacher), "expected the trainer's model alone"),
        (
            lambda student, teacher: scheme(student, kdx.teachers.EMA(student, decay=0.9)),
            "EMA follows the student, which a trainer would not save",
        ),
        (
            lambda student, teacher: scheme(
                student,
                teacher,
                knowledge={"hint": kdx.make("knowledge", "hint", student="model.norm", teacher="model.norm")},
            ),
            "knowledge 'hint' has parameters of its own",
        ),
        (
            lambda student, teacher: kdx.schemes.OnPolicy(student, teacher, max_new_tokens=4),
            "OnPolicy makes batches of its own, and a trainer takes those of the data",
        ),
    ],
)
def test_what_a_trainer_cannot_keep_is_refused(tmp_path, make, message) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, llama(0), llama(1, hidden_size=32), make=make)


def test_something_else_than_a_scheme_is_refused(tmp_path) -> None:
    with pytest.raises(TypeError, match=r"expected a function that gives a scheme, such as kdx\.Offline, got a float"):
        trainer(tmp_path, llama(0), llama(1), make=lambda student, teacher: 1.0)
