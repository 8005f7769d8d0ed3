"""On-policy distillation: the loss by hand, what counts, what is mixed, and a run that goes on where it stopped."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import kdx
from kdx.datasets import Rollouts
from kdx.errors import Interrupted
from kdx.schemes import OnPolicy
from kdx.tasks import CausalLM
from tests.language_models import END, Causal, Written, batches, hf_batch, llama, of, tokens
from tests.stopping import Stop


def divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """The generalised divergence of two rows of logits, by its definition."""
    q, p = student.softmax(0), teacher.softmax(0)
    if beta == 0:
        return (p * (p.log() - q.log())).sum()
    if beta == 1:
        return (q * (q.log() - p.log())).sum()
    m = beta * p + (1 - beta) * q
    return beta * (p * (p.log() - m.log())).sum() + (1 - beta) * (q * (q.log() - m.log())).sum()


def by_hand(student, teacher, batch: kdx.Batch, beta: float) -> Tensor:
    """The mean over generated tokens, token by token; the teacher has no gradient."""
    ids = batch.inputs
    z, t = student(ids), teacher(ids).detach()
    found = []
    for row, written in enumerate(batch.views["rollout"].tolist()):
        first = int((batch.targets[row] != -100).nonzero()[0])
        for place in range(first, first + written):
            found.append(divergence(z[row, place - 1], t[row, place - 1], beta))
    return torch.stack(found).mean()


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_loss_and_gradient_are_those_of_the_divergence_over_what_the_student_wrote(beta: float) -> None:
    student, teacher = Causal(dropout=0.0), Causal(8, seed=1)
    scheme = OnPolicy(student, teacher, beta=beta, max_new_tokens=9, ends=[END, 1], seed=0)
    (batch,) = scheme.feed([tokens()])
    assert len(set(batch.views["rollout"].tolist())) > 1
    loss = scheme(batch).terms["kd"]
    wanted = by_hand(student, teacher, batch, beta)
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    found = torch.autograd.grad(loss, list(student.parameters()))
    for one, other in zip(found, torch.autograd.grad(wanted, list(student.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_nothing_behind_the_end_counts() -> None:
    student, teacher = Causal(), Causal(8, seed=1)
    ids = torch.tensor([[1, 2, END, 3, 4, 5], [1, 2, 6, 7, 8, END]])
    targets = torch.tensor([[-100, -100, END, -100, -100, -100], [-100, -100, 6, 7, 8, END]])
    scheme = OnPolicy(student, teacher)
    batch = kdx.Batch(ids, targets, None, {"rollout": torch.tensor([1, 4])})
    other = batch._replace(inputs=torch.cat([ids[:, :3], torch.tensor([[9, 9, 9], [7, 8, END]])], 1))
    assert scheme(batch).terms["kd"] == scheme(other).terms["kd"]
    assert scheme(batch).counts["kd"] == 5


def test_a_student_that_writes_nothing_learns_nothing_and_training_goes_on() -> None:
    class Silent:
        def generate(self, input_ids, attention_mask, **options):
            return input_ids

    student = Causal()
    scheme = OnPolicy(student, Causal(8, seed=1), generator=Silent())
    (batch,) = scheme.feed([tokens()])
    losses = scheme(batch)
    assert losses.total == 0
    losses.total.backward()
    assert all(not parameter.grad.any() for parameter in student.parameters() if parameter.grad is not None)
    before = copy.deepcopy(student.state_dict())
    kdx.fit(scheme, batches(2), optimizer={"name": "SGD", "lr": 1.0}, device="cpu", progress=False)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_student_that_ends_at_once_learns_at_the_end_token() -> None:
    student = Written([0] + [END] * 20)
    scheme = OnPolicy(student, Causal(), ends=END, beta=1.0)
    (batch,) = scheme.feed([tokens()])
    assert scheme(batch).counts["kd"] == 4


def test_the_task_is_learned_from_the_datas_completions_alone() -> None:
    student, teacher = Causal(), Causal(8, seed=1)
    scheme = OnPolicy(student, teacher, task=(0.5, CausalLM()), share=0.5, max_new_tokens=4, seed=0)
    made = list(scheme.feed(batches(12)))
    own = [batch for batch in made if "rollout" in batch.views]
    data = [batch for batch in made if "rollout" not in batch.views]
    assert len(own) > 2
    assert len(data) > 2
    losses = scheme(own[0])
    assert losses.terms["task"] == 0
    assert losses.counts["task"] == 0
    plain = kdx.Offline(student, teacher, task=(0.5, CausalLM()), knowledge={"kd": kdx.knowledge.JSD()})
    for name in ("task", "kd"):
        assert scheme(data[0]).terms[name] == plain(data[0]).terms[name]
        assert scheme(data[0]).counts[name] == plain(data[0]).counts[name]


def test_micro_batches_of_both_kinds_take_the_step_of_their_tokens_together() -> None:
    options = {"optimizer": {"name": "SGD", "lr": 0.5}, "schedule": None, "device": "cpu", "progress": False}
    student, teacher = Causal(), Causal(8, seed=1)
    settings = {"task": (0.5, CausalLM()), "share": 0.5, "max_new_tokens": 4, "seed": 1}
    data = batches(4)
    made = list(OnPolicy(student, teacher, **settings).feed(data))
    assert {"rollout" in batch.views for batch in made} == {True, False}
    expected = copy.deepcopy(student)
    scheme = OnPolicy(expected, teacher, **settings)
    counts = {name: [int(scheme(batch).counts[name]) for batch in made] for name in ("task", "kd")}
    total = sum(
        scheme(batch).terms[name] * count / sum(counts[name])
        for name in counts
        for batch, count in zip(made, counts[name], strict=True)
    )
    total.backward()
    kdx.fit(OnPolicy(student, teacher, **settings), data, accumulate=4, **options)
    for one, other in zip(student.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other.detach() - 0.5 * other.grad, rtol=1e-9, atol=1e-12)


def test_each_step_asks_the_student_as_it_is_then() -> None:
    student = Causal()
    seen = []

    class Watching:
        def generate(self, input_ids, attention_mask, **options):
            seen.append(student.head.weight.detach().clone())
            return torch.cat([input_ids, torch.full((len(input_ids), 2), 3)], 1)

    scheme = OnPolicy(student, Causal(8, seed=1), generator=Watching())
    kdx.fit(scheme, batches(4), optimizer={"name": "SGD", "lr": 0.5}, device="cpu", progress=False)
    assert len({tuple(weight.flatten().tolist()) for weight in seen[-4:]}) == 4


@pytest.mark.parametrize(("accumulate", "stop"), [(1, 1), (1, 5), (1, 8), (3, 2), (3, 3)])
def test_a_resumed_run_ends_bitwise_where_the_unbroken_one_ends(tmp_path: Path, accumulate: int, stop: int) -> None:
    ids, targets = (torch.cat(parts) for parts in zip(*batches(8), strict=True))
    rows = [(ids[i], targets[i], i) for i in range(len(ids))]

    def run(folder: Path, **options) -> Causal:
        student = Causal(dropout=0.3)
        scheme = OnPolicy(
            student, Causal(8, seed=1), task=(0.1, CausalLM()), share=0.7, every=2, buffer=3, max_new_tokens=4, ends=END
        )
        loader = DataLoader(rows, 4, shuffle=True)
        kdx.fit(
            scheme,
            loader,
            epochs=2,
            accumulate=accumulate,
            optimizer={"name": "SGD", "lr": 0.3},
            seed=5,
            folder=folder,
            device="cpu",
            progress=False,
            **options,
        )
        return student

    unbroken = run(tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        run(tmp_path / "broken", observers=[Stop(stop)])
    resumed = run(tmp_path / "broken", resume=True)
    assert all(torch.equal(one, other) for one, other in zip(unbroken.parameters(), resumed.parameters(), strict=True))


def test_models_of_hugging_face_are_trained_with_accumulation_and_evaluation() -> None:
    student, teacher = llama(attention_dropout=0.1), llama(1, 32, 2)
    scheme = OnPolicy(student, teacher, task=(0.5, CausalLM()), share=0.5, max_new_tokens=5)
    data = [hf_batch(seed=seed) for seed in range(4)]
    run = kdx.fit(
        scheme,
        data,
        epochs=3,
        accumulate=2,
        evaluate=data,
        select="cross_entropy",
        device="cpu",
        progress=False,
        seed=0,
    )
    assert run.step == 6
    assert {"train/kd", "train/task", "student/cross_entropy"} <= set(run.history[-1])
    assert student.training


def test_the_divergence_from_the_teacher_on_the_students_own_text_falls() -> None:
    student, teacher = Causal(width=12), Causal(16, seed=1)
    judge = OnPolicy(student, teacher, beta=1.0, max_new_tokens=6, seed=100)

    def distance() -> float:
        with torch.no_grad():
            return sum(float(judge(batch).terms["kd"]) for batch in judge.feed(batches(8)))

    before = distance()
    scheme = OnPolicy(student, teacher, beta=1.0, max_new_tokens=6, seed=0)
    kdx.fit(scheme, batches(8), epochs=10, optimizer={"name": "AdamW", "lr": 0.03}, device="cpu", progress=False)
    assert distance() < 0.5 * before


def test_a_loader_that_makes_its_batches_itself_stays_as_it_is() -> None:
    scheme = OnPolicy(Causal(), Causal(8, seed=1))
    rollouts = Rollouts(batches(), Causal())
    assert scheme.feed(rollouts) is rollouts
    assert kdx.Supervised(Causal()).feed([1]) == [1]


def test_what_cannot_be_learned_is_refused_before_training() -> None:
    pair = Causal(), Causal(8, seed=1)
    with pytest.raises(ValueError, match=r"the task has the weight 0.5, and with share=1 no batch holds completions"):
        OnPolicy(*pair, task=(0.5, CausalLM()))
    with pytest.raises(ValueError, match="the teacher sees the view 'weak' of the data, and what the student writes"):
        OnPolicy(*pair, teacher_view="weak")
    with pytest.raises(ValueError, match="beta"):
        OnPolicy(*pair, beta=1.5)
    assert of(tokens()).rows == 4


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_teachers_top_classes_stand_for_all_of_them(beta: float) -> None:
    pair = Causal(), Causal(8, seed=1)
    losses = []
    for k in (None, 11, 3):
        scheme = OnPolicy(*pair, beta=beta, top_k=k, max_new_tokens=4, seed=0)
        (batch,) = scheme.feed([tokens()])
        losses.append(scheme(batch).terms["kd"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-7)
    assert losses[2] < losses[0]
    scheme = OnPolicy(*pair, beta=beta, top_k=3, max_new_tokens=4)
    assert kdx.fit(scheme, batches(2), device="cpu", progress=False).step == 2


@pytest.mark.parametrize("top_k", [None, 4])
def test_heads_on_both_sides_give_the_same_loss_and_gradient_without_whole_logits(top_k: int | None) -> None:
    found = []
    for held in (False, True):
        student, teacher = llama(), llama(1, 32, 2)
        heads = {"student_output": kdx.Head.of(student), "teacher_output": kdx.Head.of(teacher)} if held else {}
        scheme = OnPolicy(student, teacher, top_k=top_k, max_new_tokens=5, seed=0, **heads)
        (batch,) = scheme.feed([hf_batch()])
        loss = scheme(batch).terms["kd"]
        loss.backward()
        found.append((loss.detach(), [parameter.grad for parameter in student.parameters()], batch.inputs["input_ids"]))
    (one, gradients, ids), (other, others, same) = found
    assert torch.equal(ids, same)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    for a, b in zip(gradients, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_with_heads_a_students_own_tokens_are_no_labels_either() -> None:
    losses = []
    for held in (False, True):
        student, teacher = llama(), llama(1, 32, 2)
        heads = {"student_output": kdx.Head.of(student), "teacher_output": kdx.Head.of(teacher)} if held else {}
        scheme = OnPolicy(student, teacher, task=(0.5, CausalLM()), share=0.5, max_new_tokens=5, seed=2, **heads)
        made = list(scheme.feed([hf_batch(seed=seed) for seed in range(6)]))
        assert {"rollout" in batch.views for batch in made} == {True, False}
        found = [scheme(batch) for batch in made]
        for batch, each in zip(made, found, strict=True):
            assert (each.counts["task"] == 0) == ("rollout" in batch.views)
        losses.append(torch.stack([torch.stack([each.terms["task"], each.terms["kd"]]) for each in found]).detach())
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-7)


def test_the_students_end_token_ends_what_a_generator_of_ones_own_writes() -> None:
    class Writes:
        def generate(self, input_ids, attention_mask, **options):
            return torch.cat([input_ids, torch.tensor([[4, 2, 5, 5]]).expand(len(input_ids), -1)], 1)

    student = Causal()
    student.config = SimpleNamespace(eos_token_id=2)
    (batch,) = OnPolicy(student, Causal(8, seed=1), generator=Writes(), max_new_tokens=4).feed([tokens()])
    assert (batch.targets == 4).any()
    assert not (batch.targets == 5).any()
