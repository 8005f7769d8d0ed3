"""The supernet: who is trained by whom, what a step draws, what it leaves alone, resumed runs."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from kdx_search import Supernet, recalibrate
from kdx_search.sub_network import SubNetwork
from search_nets import Wide, images, seeded
from torch import nn

import kdx
from kdx.testing import check_scheme, toy_batches, toy_model
from kdx.training import evaluate


def made(**options) -> Supernet:
    knowledge = options.pop("knowledge", {"kd": (0.5, kdx.SoftTargets(2.0))})
    return Supernet(seeded(Wide), seeded(lambda: Wide(12), 1), knowledge=knowledge, **options)


def test_conformance() -> None:
    student, teacher = toy_model(8), toy_model(4, seed=1)
    knowledge = {"kd": (0.5, kdx.SoftTargets(2.0))}
    check_scheme(Supernet(student, teacher, knowledge=knowledge, samples=1, widths=(0.5, 1.0)))


def test_the_losses_are_those_of_the_sandwich_rule_with_in_place_distillation() -> None:
    scheme = made(samples=2, weight=0.7, temperature=1.5).double()
    batch = kdx.Batch(images(6).double(), torch.arange(6) % 3)
    scheme.setup(batch)
    scheme.train().advance(4, 10)
    whole = copy.deepcopy(scheme.student)
    parts = {name: SubNetwork(scheme.space, choice).extract() for name, choice in scheme.choices(4).items()}
    assert list(parts) == ["smallest", "random1", "random2"]
    losses = scheme(batch)
    logits = whole.train()(batch.inputs)
    teacher = copy.deepcopy(scheme.teacher.model)(batch.inputs)

    def soft(teacher, student, t):
        return t * t * F.kl_div(F.log_softmax(student / t, 1), F.softmax(teacher / t, 1), reduction="batchmean")

    expected = {"task": F.cross_entropy(logits, batch.targets), "kd": 0.5 * soft(teacher, logits, 2.0)}
    for name, part in parts.items():
        expected[f"{name}/in-place"] = 0.7 * soft(logits.detach(), part.train()(batch.inputs), 1.5)
    assert list(losses.terms) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses.terms[name], value, rtol=1e-9, atol=1e-12)


def test_the_largest_learns_nothing_from_the_others() -> None:
    scheme = made(samples=0, knowledge={})
    batch = kdx.Batch(images(6), torch.arange(6) % 3)
    scheme.setup(batch)
    scheme.task_weight = 0.0
    scheme(batch).total.backward()
    for name, parameter in scheme.student.named_parameters():  # what the smallest does not have is not moved
        if name in ("blocks.0.conv1.weight", "stem.weight"):
            assert not parameter.grad[len(parameter) // 2 :].any()
            assert parameter.grad[: len(parameter) // 4].any()


def test_the_statistics_of_norms_are_those_of_the_largest_alone() -> None:
    scheme = made(samples=3)
    batch = kdx.Batch(images(6), torch.arange(6) % 3)
    scheme.setup(batch)
    alone = copy.deepcopy(scheme.student).train()
    scheme.train()(batch)
    alone(batch.inputs)
    assert torch.equal(scheme.student.norm.running_mean, alone.norm.running_mean)
    assert torch.equal(scheme.student.blocks[1].norm1.running_var, alone.blocks[1].norm1.running_var)


def test_what_is_drawn_follows_from_seed_and_step() -> None:
    one, other = made(samples=4, seed=1), made(samples=4, seed=2)
    for scheme in (one, other):
        scheme.setup(kdx.Batch(images(4), torch.arange(4) % 3))
    assert one.choices(7) == one.choices(7)
    assert one.choices(7) != one.choices(8)
    assert one.choices(7) != other.choices(7)


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path) -> None:
    def run(folder, **options) -> dict[str, torch.Tensor]:
        scheme = made(samples=1)
        kdx.fit(scheme, toy_batches(), seed=3, device="cpu", progress=False, folder=folder, **options)
        return scheme.student.state_dict()

    class Stop:
        @kdx.hookimpl
        def kdx_step_end(self, run, step, losses) -> None:
            if step == 5:
                raise KeyboardInterrupt

    whole = run(None, epochs=3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, epochs=3, checkpoint_every=5, observers=[Stop()])
    resumed = run(tmp_path, epochs=3, resume=True)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_training_teaches_the_smallest_too() -> None:
    data = toy_batches(count=4, rows=24)
    scheme = made(samples=0)
    scheme.setup(data[0])

    def accuracy() -> float:
        part = SubNetwork(scheme.space, scheme.space.smallest, scheme.student)
        recalibrate(part, data)
        return evaluate(part, data)["accuracy"]

    before = accuracy()
    kdx.fit(scheme, data, epochs=10, optimizer=kdx.Ref("AdamW", lr=0.02), seed=0, device="cpu", progress=False)
    assert accuracy() > max(0.8, before + 0.2)


def test_a_lesson_of_ones_own_replaces_the_soft_targets() -> None:
    scheme = made(samples=0, knowledge={"in-place": (2.0, nn.MSELoss())}).double()
    batch = kdx.Batch(images(4).double(), torch.arange(4) % 3)
    scheme.setup(batch)
    smallest = SubNetwork(scheme.space, scheme.space.smallest).extract().train()
    expected = 2 * F.mse_loss(smallest(batch.inputs), copy.deepcopy(scheme.student).train()(batch.inputs))
    torch.testing.assert_close(scheme.train()(batch).terms["smallest/in-place"], expected, rtol=1e-9, atol=1e-12)


def test_what_would_teach_nothing_or_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="samples must be a whole number of sub-networks, 0 or more; got -1"):
        made(samples=-1)
    with pytest.raises(ValueError, match=r"'in-place' reads \['stem'\], layers that every sub-network has in another"):
        made(knowledge={"in-place": kdx.make("knowledge", "hint", student="stem", teacher="stem")})
    with pytest.raises(RuntimeError, match=r"call scheme.setup\(batch\) once"):
        made()((images(4), torch.zeros(4, dtype=torch.int64)))


def test_parts_of_a_batch_put_together_are_the_whole() -> None:
    scheme = made(samples=1).double()
    batch = kdx.Batch(images(12).double(), torch.arange(12) % 3)
    scheme.setup(batch)
    scheme.eval().advance(2, 4)
    scheme(batch).total.backward()
    whole = scheme.student.stem.weight.grad.clone()
    scheme.zero_grad()
    for rows in (slice(0, 6), slice(6, 12)):
        (scheme(batch.at(rows)).total / 2).backward()
    torch.testing.assert_close(scheme.student.stem.weight.grad, whole, rtol=1e-9, atol=1e-12)
