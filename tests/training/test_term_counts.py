"""One step on a whole batch is the step on its parts: a term is combined by what it is a mean over."""

from __future__ import annotations

import functools
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kdx
from kdx.batch import IGNORE
from kdx.losses import Losses, Mean, Over
from tests.ranks import on_two_ranks

WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


def rows(targets: torch.Tensor, width: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(64, *targets.shape[1:], width, generator=generator, dtype=torch.float64)
    return [inputs, targets]


def uneven(shape: tuple[int, ...], *, classes: int = 3) -> torch.Tensor:
    """Integer targets with ``-100`` in more and more of the elements from the first row to the last."""
    generator = torch.Generator().manual_seed(4)
    targets = torch.randint(classes, shape, generator=generator)
    void = torch.rand(shape, generator=generator) < torch.linspace(0, 1, 64).view(-1, *[1] * (len(shape) - 1))
    return targets.masked_fill(void, IGNORE)


def image_loss(logits: torch.Tensor, targets: torch.Tensor, **options) -> torch.Tensor:
    return F.cross_entropy(logits.movedim(-1, 1), targets, **options)


def counted(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A mean over pairs of neighbouring tokens that are both labelled, which only the function knows."""
    pairs = (targets[:, 1:] != IGNORE) & (targets[:, :-1] != IGNORE)
    loss = (logits[:, 1:] - logits[:, :-1]).square().mean(2)
    count = pairs.sum()
    return (loss * pairs).sum() / count.clamp(min=1), count


class Own(kdx.Supervised):
    """A scheme of a user's: its term has a name of its own."""

    def terms(self, batch):
        term = self.task_terms(self.taps(batch.inputs), batch)["task"]
        return {"ce": term, "size": self.taps(batch.inputs).logits.square().mean()}


class OwnForward(kdx.Supervised):
    """One that writes ``forward`` and gives a plain value and a count."""

    def forward(self, batch):
        batch = kdx.Batch.of(batch)
        logits = self.student(batch.inputs)
        value = F.cross_entropy(logits, batch.targets, weight=WEIGHTS)
        count = WEIGHTS[batch.targets[batch.targets != IGNORE]].sum()
        return Losses.of({"mine": (value, count), "plain": logits.abs().mean()})


class Labelled(kdx.Supervised):
    """One whose term counts labelled rows and says that the batch tells them."""

    def terms(self, batch):
        logits = self.taps(batch.inputs).logits
        total = F.cross_entropy(logits, batch.targets, reduction="sum")
        return {"ce": Mean.of_sum(total, (batch.targets != IGNORE).sum(), Over.LABELLED)}


def language_model(student: nn.Module, **options) -> kdx.Scheme:
    """A scheme whose terms are means over labelled, shifted tokens."""
    torch.manual_seed(1)
    teacher = nn.Linear(5, 3, dtype=student[0].weight.dtype)
    knowledge = {"kd": kdx.SoftTargets(2.0), "dkd": kdx.make("knowledge", "dkd")}
    return kdx.Offline(student, teacher, knowledge=knowledge, **options)


CASES = {
    "half-labelled rows": (kdx.Supervised, None, (64,)),
    "another name": (Own, None, (64,)),
    "torch's function": (kdx.Supervised, F.cross_entropy, (64,)),
    "torch's module with class weights": (kdx.Supervised, nn.CrossEntropyLoss(weight=WEIGHTS), (64,)),
    "a partial function with class weights and smoothing": (
        kdx.Supervised,
        functools.partial(F.cross_entropy, weight=WEIGHTS, label_smoothing=0.1),
        (64,),
    ),
    "another ignored class": (kdx.Supervised, functools.partial(F.cross_entropy, ignore_index=1), (64,)),
    "void pixels": (kdx.Supervised, image_loss, (64, 4, 4)),
    "per-token means": (kdx.Supervised, image_loss, (64, 7)),
    "tokens of a language model": (language_model, kdx.make("task", "causal-lm"), (64, 7)),
    "a count that only the function knows": (kdx.Supervised, counted, (64, 7)),
    "a value and a count from forward": (OwnForward, None, (64,)),
    "a sum over labelled rows": (Labelled, None, (64,)),
}


def build(case: str, dtype: torch.dtype) -> tuple[kdx.Scheme, list[torch.Tensor]]:
    make, task, shape = CASES[case]
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    targets = uneven(shape)
    if case == "another ignored class":
        targets = targets.masked_fill(targets == IGNORE, 1)
    inputs, targets = rows(targets)
    options = {} if task is None else {"task": task}
    return make(student, **options), [inputs.to(dtype), targets]


def stepped(case: str, size: int, accumulate: int, dtype: torch.dtype = torch.float64, **options) -> dict:
    scheme, data = build(case, dtype)
    loader = list(zip(*(part.split(size) for part in data), strict=True))
    sgd = {"name": "SGD", "lr": 1.0, "momentum": 0.0}
    kdx.fit(scheme, loader, epochs=1, accumulate=accumulate, optimizer=sgd, schedule=None, device="cpu", **options)
    return {name: value.clone() for name, value in scheme.student.state_dict().items()}


@pytest.mark.parametrize("case", CASES)
def test_a_step_on_the_whole_is_the_step_on_four_or_sixteen_parts(case) -> None:
    whole = stepped(case, 64, 1)
    start, _ = build(case, torch.float64)
    moved = max((value - whole[name]).abs().max() for name, value in start.student.state_dict().items())
    assert moved > 1e-3
    for size, accumulate in ((16, 4), (4, 16), (24, 3)):  # in the last micro-batches of four nothing has a label
        for name, value in stepped(case, size, accumulate).items():
            torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-12, msg=f"{size}: {name}")


@pytest.mark.parametrize("case", ["half-labelled rows", "void pixels", "a count that only the function knows"])
def test_in_float32_the_same_within_1e_6(case) -> None:
    whole = stepped(case, 64, 1, torch.float32)
    for name, value in stepped(case, 16, 4, torch.float32).items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-6, msg=name)


def test_the_losses_of_a_step_are_those_of_the_whole() -> None:
    found = {}

    def watching(kind: str):
        class Watch:
            @kdx.hookimpl
            def kdx_step_end(self, losses) -> None:
                found[kind] = losses

        return Watch()

    stepped("a value and a count from forward", 64, 1, observers=[watching("whole")])
    stepped("a value and a count from forward", 16, 4, observers=[watching("parts")])
    for name in ("mine", "plain"):
        torch.testing.assert_close(found["parts"].terms[name], found["whole"].terms[name], rtol=1e-12, atol=0)
    torch.testing.assert_close(found["parts"].total, found["whole"].total, rtol=1e-12, atol=0)
    assert float(found["parts"].counts["mine"]) == pytest.approx(float(found["whole"].counts["mine"]))


def test_terms_with_counts_of_their_own_keep_the_graphs_and_others_free_them(monkeypatch) -> None:
    alive = []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            alive.append("forward")
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            alive.append("backward")
            return gradient

    def probed(fn):
        return lambda logits, targets: fn(Probe.apply(logits), targets)

    for case, expected in (
        ("half-labelled rows", ["forward", "backward"] * 4),
        ("a count that only the function knows", ["forward"] * 4 + ["backward"] * 4),
    ):
        alive.clear()
        scheme, data = build(case, torch.float64)
        scheme.task = probed(scheme.task)
        loader = list(zip(*(part.split(16) for part in data), strict=True))
        kdx.fit(scheme, loader, epochs=1, accumulate=4, device="cpu")
        assert alive == ["forward", *expected]  # the first batch is tried before the run trains on it


RANKS = """
import json, sys
import torch, kdx
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset
from tests.training.test_term_counts import build, CASES

rank, store, case = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
result = {}
for case in case.split(";"):
    scheme, data = build(case, torch.float64)
    loader = DataLoader(TensorDataset(*data), batch_size=int(sys.argv[4]))
    sgd = {"name": "SGD", "lr": 1.0, "momentum": 0.0}
    accumulate = 32 // int(sys.argv[4])
    run = kdx.fit(scheme, loader, epochs=1, accumulate=accumulate, optimizer=sgd, schedule=None, device="cpu")
    assert run.step == 1, run.step
    result[case] = {name: value.tolist() for name, value in scheme.student.state_dict().items()}
dist.barrier()
dist.destroy_process_group()
print(json.dumps(result))
"""


@pytest.mark.quick(size=[8])
@pytest.mark.parametrize("size", [32, 8])
def test_two_ranks_take_the_step_of_one_process(size, tmp_path) -> None:
    for line in on_two_ranks(RANKS, str(tmp_path / "store"), ";".join(CASES), str(size)):
        for case, weights in json.loads(line).items():
            for name, value in stepped(case, 64, 1).items():
                found = torch.tensor(weights[name], dtype=torch.float64)
                torch.testing.assert_close(found, value, rtol=0, atol=1e-12, msg=f"{case}: {name}")


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ((torch.tensor(1.0), -1), "its count says what it is a mean over and must be 0 or more, got -1"),
        ((torch.tensor(1.0), torch.ones(2)), r"its count must be a number or a 0-dim tensor, got shape \[2\]"),
        ((torch.tensor(1.0), "3"), "its count must be a number or a 0-dim tensor, got '3'"),
        ((torch.ones(2), 1), r"expected one number, a 0-dim tensor .* shape \[2\]"),
        ((torch.tensor(1.0),), r"expected a scalar, kdx.Mean or \(value, count\), got a tuple of 1"),
    ],
)
def test_a_term_that_is_no_mean_is_refused_by_name(term, message) -> None:
    with pytest.raises((TypeError, ValueError), match=f"term 'ce': {message}"):
        Losses.of({"ce": term})


def test_a_term_over_nothing_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    void = torch.full((4,), IGNORE)
    for term in (
        (F.cross_entropy(logits, void), torch.tensor(0)),
        (F.cross_entropy(logits, void), 0),
        Mean.of_sum(F.cross_entropy(logits, void, reduction="sum"), torch.tensor(0)),
    ):
        losses = Losses.of({"ce": term})
        assert losses.total.item() == 0.0
        (gradient,) = torch.autograd.grad(losses.total, logits)
        assert gradient.count_nonzero() == 0
        assert gradient.isfinite().all()


def test_a_sum_is_no_task_loss() -> None:
    for task in (nn.CrossEntropyLoss(reduction="sum"), functools.partial(F.mse_loss, reduction="none")):
        with pytest.raises(ValueError, match="and the task loss is a mean"):
            kdx.Supervised(nn.Linear(2, 2), task=task)


def test_a_term_that_counts_one_thing_here_and_another_there_is_refused() -> None:
    class Fickle(kdx.Supervised):
        def terms(self, batch):
            term = self.task_terms(self.taps(batch.inputs), batch)["task"]
            return {"ce": term if batch.targets[0] == 0 else term._replace(over=None)}

    data = [(torch.randn(2, 3), torch.tensor([k, k])) for k in range(2)]
    with pytest.raises(ValueError, match="'ce' is a mean over task in one micro-batch and over what its outputs tell"):
        kdx.fit(Fickle(nn.Linear(3, 2)), data, epochs=1, accumulate=2, device="cpu")
