"""A teacher's likeliest classes: their numbers, what they are compared by, and what cannot read them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kdx
from kdx.errors import ComponentError
from kdx.teachers import TopK, top_classes
from kdx.teachers import top_k as module
from tests.language_models import Causal, batches, of, tokens


@pytest.mark.parametrize("room", [1, 64 << 20])
def test_they_are_the_likeliest_with_their_probabilities_among_all(monkeypatch, room) -> None:
    def random(*shape: int, seed: int = 0, std: float = 1.0) -> torch.Tensor:
        return std * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", room)
    z = random(2, 3, 7, std=2.0)
    top = top_classes(z, 4, temperature=2.0)
    p = (z / 2).softmax(2).sort(2, descending=True)
    assert torch.equal(top.ids, p.indices[..., :4])
    torch.testing.assert_close(top.logprobs.exp(), p.values[..., :4], rtol=1e-12, atol=0)
    assert top.temperature == 2.0
    hidden, weight, bias = random(2, 3, 4, seed=1), random(7, 4, seed=2), random(7, seed=3)
    held = kdx.LinearLogits(hidden, weight, bias, scale=0.5, softcap=3.0)
    for vocabulary in (None, 5):
        dense = held.dense()[..., :vocabulary]
        one, other = top_classes(held, 3, vocabulary=vocabulary), top_classes(dense, 3)
        assert torch.equal(one.ids, other.ids)
        torch.testing.assert_close(one.logprobs, other.logprobs, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="at most the 5 classes of the teacher, got 6"):
        top_classes(z, 6, vocabulary=5)


def test_all_classes_are_the_full_divergence_and_few_a_lower_bound() -> None:
    student, teacher, batch = Causal(), Causal(8, seed=1), of(tokens())
    task = (0.0, kdx.tasks.CausalLM())
    for component in (
        kdx.SoftTargets(1.0),
        kdx.knowledge.ReverseKL(1.0),
        kdx.knowledge.JSD(1.0),
        kdx.knowledge.SkewKL(),
    ):
        losses = [
            kdx.Offline(student, each, task=task, knowledge={"kd": component})(batch).total.item()
            for each in (teacher, TopK(teacher, 11), TopK(teacher, 3), TopK(teacher, 1))
        ]
        assert losses[1] == pytest.approx(losses[0], rel=1e-7)
        assert losses[0] > losses[2] > losses[3] > 0


def test_it_trains_as_any_teacher_and_nothing_about_the_inner_one_changes() -> None:
    student, teacher = Causal(), Causal(8, seed=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    scheme = kdx.Offline(
        student, TopK(teacher, 4), task=(0.5, kdx.tasks.CausalLM()), knowledge={"kd": kdx.SoftTargets(1.0)}
    )
    run = kdx.fit(scheme, batches(4), epochs=4, optimizer={"name": "AdamW", "lr": 0.02}, device="cpu", progress=False)
    assert run.history[-1]["train/kd"] < run.history[0]["train/kd"]
    assert len(run.teachers) == 1
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_what_cannot_read_few_classes_is_refused() -> None:
    student, teacher = Causal(), TopK(Causal(8, seed=1), 4)
    task = (0.0, kdx.tasks.CausalLM())
    scheme = kdx.Offline(student, teacher, task=task, knowledge={"kd": kdx.make("knowledge", "logits")})
    with pytest.raises(ComponentError, match="held as SparseTargets without a way to make it"):
        kdx.fit(scheme, batches(1), device="cpu", progress=False)
    scheme = kdx.Offline(student, teacher, task=task, knowledge={"kd": kdx.SoftTargets(2.0)})
    with pytest.raises(ComponentError, match="the targets were taken at 1, got 2"):
        kdx.fit(scheme, batches(1), device="cpu", progress=False)
    pixels = TopK(nn.Conv2d(1, 3, 1), 2)
    with pytest.raises(ValueError, match="classes on the last axis, got class axis 1"):
        pixels(kdx.Batch(torch.ones(2, 1, 4, 4)))


def test_the_tail_of_a_confident_teacher_is_small_and_not_nothing() -> None:
    logits = torch.zeros(1, 8)
    logits[0, 0] = 20.0
    targets = top_classes(logits, 2)
    exact = logits.double().log_softmax(1).sort(1, descending=True).values[:, 2:].logsumexp(1)
    torch.testing.assert_close(targets.rest().double(), exact, rtol=1e-6, atol=0)
    student = torch.zeros(1, 8, requires_grad=True)
    loss = kdx.ops.topk_kl(student, targets, divergence="reverse")
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    unknown = kdx.ops.SparseTargets(torch.tensor([[0]]), torch.tensor([[0.0]]))
    assert unknown.rest().isfinite().all()
