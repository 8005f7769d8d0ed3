"""Schemes whose student and teacher hold their logits as hidden states and a head."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import kdx
from kdx import Head, Offline
from kdx.schemes import Warmup
from kdx.teachers import Ensemble, Frozen
from tests.ranks import on_two_ranks

V = 60
IDS = torch.randint(V, (3, 12), generator=torch.Generator().manual_seed(0))
LABELS = IDS.clone()
LABELS[:, :3], LABELS[2, 5:] = -100, -100
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": LABELS}


def llama(width: int = 8, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=V, num_hidden_layers=2, head_dim=4, **(sizes | options))
    )
    for parameter in model.parameters():  # far from uniform answers
        parameter.data.mul_(3.0)
    return model


def scheme(student: nn.Module, teacher: Any, *, head: bool, task: Any = (0.5, None), **knowledge: Any) -> Offline:
    weight = None if task is None else (task[0], task[1] or kdx.make("task", "causal-lm"))
    heads: dict[str, Any] = {"student_output": Head.of(student)} if head else {}
    if head and isinstance(teacher, nn.Module) and not isinstance(teacher, kdx.Teacher):
        heads["teacher_output"] = Head.of(teacher)
    terms = knowledge or {"kd": (0.5, kdx.SoftTargets(1.0))}
    return Offline(student, teacher, task=weight, knowledge=terms, **heads)


def step(distil: Offline, batch: Any = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    losses = distil(BATCH if batch is None else batch)
    losses.total.backward()
    gradients = {name: p.grad for name, p in distil.student.named_parameters()}
    distil.zero_grad(set_to_none=True)
    return {name: term.detach() for name, term in losses.terms.items()}, gradients


def check_same(found: tuple[Any, Any], wanted: tuple[Any, Any], tolerance: float = 2e-5) -> None:
    assert found[0].keys() == wanted[0].keys()
    for name, term in wanted[0].items():
        torch.testing.assert_close(found[0][name], term, rtol=2e-6, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}")
    for name, gradient in wanted[1].items():
        apart = (found[1][name] - gradient).norm() / gradient.norm()
        assert apart < tolerance, name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("knowledge", ["soft-targets", "reverse-kl", "jsd", "skew-kl"])
def test_terms_and_gradients_are_those_of_the_logits(knowledge: str, tied: bool) -> None:
    student, teacher = llama(tie_word_embeddings=tied), llama(12, seed=1)
    term = {"kd": (0.7, kdx.make("knowledge", knowledge, temperature=2.0))}
    check_same(step(scheme(student, teacher, head=True, **term)), step(scheme(student, teacher, head=False, **term)))


def test_accumulation_over_micro_batches_of_unequal_tokens_is_one_batch() -> None:
    student, teacher = llama(), llama(12, seed=1)
    parts = [{key: value[rows] for key, value in BATCH.items()} for rows in (slice(0, 2), slice(2, 3))]
    states = []
    for data, accumulate in ((parts, 2), ([BATCH], 1)):
        distil = scheme(copy.deepcopy(student), teacher, head=True)
        optimizer = torch.optim.SGD(distil.student.parameters(), lr=1.0)
        kdx.fit(distil, data, epochs=1, accumulate=accumulate, optimizer=optimizer, device="cpu", progress=False)
        states.append(distil.student.state_dict())
    before = student.state_dict()
    for name, value in states[1].items():
        moved = (value - before[name]).norm()
        assert (states[0][name] - value).norm() <= 2e-5 * moved, name
        assert moved > 0


def test_a_task_that_reads_logits_is_refused_before_training() -> None:
    student = llama()
    smoothed = kdx.make("task", "causal-lm", label_smoothing=0.1)
    for task in (smoothed, kdx.make("task", "token-classification")):
        with pytest.raises(ValueError, match=r"task: .* reads the tensor of the student's logits.*student_output"):
            Offline(student, llama(seed=1), task=task, student_output=Head.of(student))
    with pytest.raises(ValueError, match=r"task: .* reads the tensor of the student's logits"):
        kdx.Supervised(student, student_output=Head.of(student))


def test_a_frozen_teacher_in_half_precision_keeps_its_dtype() -> None:
    student, teacher = llama(), llama(12, seed=1)
    frozen = Frozen(teacher, dtype=torch.bfloat16, output=Head.of(teacher))
    frozen.tap(["logits"])
    held = frozen(kdx.Batch.of(BATCH)).response("logits")
    assert (held.hidden.dtype, held.weight.dtype) == (torch.bfloat16, torch.bfloat16)
    found = step(scheme(student, frozen, head=True))
    plain = step(scheme(student, Frozen(teacher, dtype=torch.bfloat16), head=False))
    torch.testing.assert_close(found[0]["kd"], plain[0]["kd"], rtol=2e-2, atol=1e-3)


def test_evaluation_holds_no_logits_and_measures_the_same() -> None:
    student, task = llama(), kdx.make("task", "causal-lm", token_bytes=[1] * V)
    wanted = kdx.training.evaluate(student, [BATCH], metrics=task.metrics)
    places = []
    student.lm_head.register_forward_hook(lambda _m, _i, out: places.append(out.shape[1]))
    found = kdx.training.evaluate(student, [BATCH], metrics=task.metrics, output=Head.of(student))
    assert found == pytest.approx(wanted, rel=1e-5)
    assert places == [1]


def test_a_run_evaluates_by_the_head_too_and_metrics_of_others_get_logits() -> None:
    student = llama()
    distil = scheme(student, llama(12, seed=1), head=True)
    places, options = [], {"epochs": 1, "evaluate": [BATCH], "device": "cpu", "progress": False}
    student.lm_head.register_forward_hook(lambda _m, _i, out: places.append(out.shape[1]))
    run = kdx.fit(distil, [BATCH], select="cross_entropy", **options)
    assert set(places) == {1}
    assert run.history[-1]["student/cross_entropy"] > 0
    kdx.fit(distil, [BATCH], metrics=lambda logits: kdx.make("task", "causal-lm").metrics(logits), **options)
    assert set(places) == {1, 12}


class Products(TorchDispatchMode):
    """Counts the calls of linear_kl, each of which multiplies hidden states by the student's head."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func.name().startswith("kdx::linear_kl")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("options", "products"),
    [
        ({}, 1),
        ({"void": False}, 1),
        ({"vocabulary": V}, 1),
        ({"vocabulary": V - 1}, 2),  # whose cross-entropy is over all classes
    ],
)
def test_the_task_and_one_component_share_a_product_of_the_head(options: dict[str, Any], products: int) -> None:
    student, teacher = llama(), llama(12, seed=1)
    knowledge = {"kd": (0.7, kdx.SoftTargets(2.0, **options))}
    distil = scheme(student, teacher, head=True, **knowledge)
    with Products() as counted:
        found = step(distil)
    assert counted.number == products
    check_same(found, step(scheme(student, teacher, head=False, **knowledge)))


def test_a_weight_of_0_for_now_leaves_the_task_alone() -> None:
    student, teacher = llama(), llama(12, seed=1)
    knowledge = {"kd": (Warmup(1.0, steps=6), kdx.SoftTargets(2.0))}
    for at in (0, 3, 9):
        found, wanted = (scheme(student, teacher, head=head, **knowledge) for head in (True, False))
        found.advance(at, 10)
        wanted.advance(at, 10)
        check_same(step(found), step(wanted))


def test_terms_that_are_weighed_anew_after_the_forward_pass_have_their_gradients() -> None:
    student, teacher = llama(), llama(12, seed=1)
    found, wanted = (scheme(student, teacher, head=head)(BATCH).terms for head in (True, False))
    weight = student.lm_head.weight
    for name in ("task", "kd"):
        ours, theirs = (torch.autograd.grad(terms[name], weight, retain_graph=True)[0] for terms in (found, wanted))
        assert (ours - theirs).norm() < 2e-5 * theirs.norm(), name


@pytest.mark.parametrize("taught", [None, "attention_mask"])
def test_a_task_that_says_where_the_teacher_teaches_is_kept_to(taught: str | None) -> None:
    student, teacher = llama(), llama(12, seed=1)
    task = kdx.make("task", "causal-lm", taught=taught)
    check_same(*(step(scheme(student, teacher, head=head, task=(0.5, task))) for head in (True, False)))


def test_a_batch_without_labels_has_terms_of_0() -> None:
    distil = scheme(llama(), llama(12, seed=1), head=True)
    terms, gradients = step(distil, BATCH | {"labels": torch.full_like(IDS, -100)})
    assert all(term == 0 for term in terms.values())
    assert all((gradient == 0).all() for gradient in gradients.values())


def test_logits_of_a_teacher_in_half_precision_are_widened_only_where_a_tensor_is_asked_for() -> None:
    student, teacher = llama(), llama(12, seed=1)
    frozen = Frozen(teacher, dtype=torch.bfloat16)
    captured = frozen(kdx.Batch.of(BATCH))
    assert captured.response("logits").dtype == torch.bfloat16
    assert captured.logits.dtype == torch.float32
    task = kdx.make("task", "causal-lm")
    knowledge = {"kd": (1.0, kdx.SoftTargets(1.0)), "dkd": (1.0, kdx.make("knowledge", "dkd"))}
    terms = Offline(student, frozen, task=task, knowledge=knowledge)(BATCH).terms
    assert all(term.isfinite() for term in terms.values())


def test_a_mean_of_teachers_that_hold_no_logits_is_refused() -> None:
    teachers = {name: Frozen(llama(seed=seed), output=Head("model.norm", "lm_head")) for seed, name in enumerate("ab")}
    with pytest.raises(ValueError, match=r"teachers: 'a' holds its logits as hidden states and a head.*leave kdx.Head"):
        Ensemble(teachers)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_gradient_checkpointing_changes_nothing() -> None:
    student, teacher = llama(), llama(12, seed=1)
    wanted = step(scheme(student, teacher, head=True))
    student.train()
    student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    check_same(step(scheme(student, teacher, head=True)), wanted)


def test_under_autocast_products_are_narrow_and_logits_are_not() -> None:
    student, teacher = llama(), llama(12, seed=1)
    wanted = step(scheme(student, teacher, head=False))
    with torch.autocast("cpu", torch.bfloat16):
        found = step(scheme(student, teacher, head=True))
    assert all(gradient.dtype == torch.float32 for gradient in found[1].values())
    for name, term in wanted[0].items():
        torch.testing.assert_close(found[0][name], term, rtol=3e-2, atol=1e-3)


RANKS = """
import sys
import torch, kdx
import torch.distributed as dist
from tests.schemes.test_held import BATCH, llama, scheme

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
rows = [slice(0, 2), slice(2, 3)]  # of 18 and 2 labelled tokens
parts = [{name: value[at] for name, value in BATCH.items()} for at in rows]
distil = scheme(llama(), llama(12, seed=1), head=True)
sgd = {"name": "SGD", "lr": 0.1, "momentum": 0.0}
kdx.fit(distil, [parts[rank]], epochs=1, optimizer=sgd, schedule=None, device="cpu", progress=False)
dist.barrier()
dist.destroy_process_group()
print(sum((value.double() ** 2).sum().item() for value in distil.student.state_dict().values()))
"""


@pytest.mark.slow
def test_two_ranks_of_unequal_tokens_take_the_step_of_one_batch(tmp_path: Path) -> None:
    distil = scheme(llama(), llama(12, seed=1), head=True)
    before = squares(distil.student)
    sgd = {"name": "SGD", "lr": 0.1, "momentum": 0.0}
    kdx.fit(distil, [BATCH], epochs=1, optimizer=sgd, schedule=None, device="cpu", progress=False)
    after = squares(distil.student)
    for line in on_two_ranks(RANKS, str(tmp_path / "store")):
        assert float(line) - before == pytest.approx(after - before, rel=1e-3)


def squares(model: nn.Module) -> float:
    return sum((value.double() ** 2).sum().item() for value in model.state_dict().values())
