"""The first batch of a run is tried before the run trains on it: every term must teach, and the try leaves no trace."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

import kdx
import kdx.errors
import kdx.teachers
from kdx.datasets import Digits, View
from kdx.errors import CaptureError
from kdx.schemes.weights import Warmup
from kdx.training.reach import reaches
from kdx.training.tryout import Tryout

BATCHES = [(torch.randn(8, 4), torch.arange(8) % 3) for _ in range(3)]


class Two(nn.Module):
    """Two layers; how the first one runs is up to ``how``."""

    def __init__(self, how: str = "plainly") -> None:
        super().__init__()
        self.first, self.second, self.how = nn.Linear(4, 6), nn.Linear(6, 3), how

    def forward(self, x):
        if self.how == "reentrant":
            return checkpoint(lambda x: self.second(self.first(x)), x.detach().requires_grad_(), use_reentrant=True)
        if self.how == "checkpointed":
            return self.second(checkpoint(self.first, x, use_reentrant=False))
        if self.how == "no_grad":
            with torch.no_grad():
                hidden = self.first(x)
            return self.second(hidden)
        return self.second(self.first(x))


class Mine(kdx.Knowledge):
    """The distance of the logits, cut off in one of several ways."""

    def __init__(self, cut: str) -> None:
        super().__init__()
        self.cut, self.scale = cut, nn.Parameter(torch.ones(()))

    def forward(self, student, teacher, batch):
        s = student.logits.detach() if self.cut == "detached" else student.logits
        loss = (self.scale * s - teacher.logits).square().mean()
        return loss.detach() if self.cut == "loss" else loss


def fit(scheme, batches=BATCHES, **options):
    return kdx.fit(scheme, batches, device="cpu", **options)


def hinted(student, teacher=None, **terms):
    hint = kdx.Hint(student="first", teacher="first")
    return kdx.Offline(student, teacher or Two(), knowledge={"hint": hint, **terms})


@pytest.mark.parametrize("how", ["reentrant", "no_grad"])
def test_a_tap_where_no_gradient_passes_is_named_with_its_term(how) -> None:
    with pytest.raises(ValueError, match=r"'hint' \(Hint\) teaches nothing.*'first'.*use_reentrant=False"):
        fit(hinted(Two(how)))


@pytest.mark.parametrize("how", ["plainly", "checkpointed"])
def test_a_tap_where_gradient_passes_trains(how) -> None:
    assert fit(hinted(Two(how))).step == 3


def test_a_task_behind_a_reentrant_checkpoint_trains() -> None:
    assert fit(kdx.Supervised(Two("reentrant"))).step == 3


@pytest.mark.parametrize(
    ("cut", "cause"), [("loss", "cut off from what it reads"), ("detached", "Only its own parts learn")]
)
@pytest.mark.parametrize("weight", [1.0, Warmup(to=1.0, steps=2)], ids=["weighted", "from 0"])
def test_a_loss_that_is_cut_off_is_named(cut, cause, weight) -> None:
    with pytest.raises(ValueError, match=f"'mine' \\(Mine\\) teaches nothing.*{cause}"):
        fit(kdx.Offline(Two(), Two(), knowledge={"mine": (weight, Mine(cut))}))


def test_a_task_that_is_cut_off_is_named() -> None:
    def task(outputs, targets):
        return F.cross_entropy(outputs.detach(), targets)

    with pytest.raises(ValueError, match=r"term 'task' teaches nothing.*no gradient at all"):
        fit(kdx.Offline(Two(), Two(), task=task, knowledge={"kd": kdx.SoftTargets()}))


def test_a_student_that_is_frozen_is_named_though_an_adapter_would_learn() -> None:
    with pytest.raises(ValueError, match="every parameter of student is frozen"):
        fit(hinted(Two().requires_grad_(False)))


def test_a_tap_of_frozen_layers_is_named() -> None:
    student = Two()
    student.first.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'hint' .*no layer up to it is trained"):
        fit(hinted(student))


def test_what_is_worth_nothing_yet_teaches_all_the_same() -> None:
    unlabelled = [(inputs, torch.full_like(targets, -100)) for inputs, targets in BATCHES]
    teacher = Two()
    scheme = kdx.Offline(
        copy.deepcopy(teacher), teacher, knowledge={"kd": (Warmup(to=1.0, steps=9), kdx.SoftTargets())}
    )
    assert fit(scheme, unlabelled).step == 3


def test_a_term_of_a_teacher_that_teaches_later_is_tried_when_it_comes() -> None:
    scheme = kdx.make("scheme", "snapshot-distillation", Two(), cycle=1, knowledge={"mine": Mine("loss")})
    with pytest.raises(ValueError, match=r"'mine' .* teaches nothing"):
        fit(scheme, epochs=3)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_tensor_overwritten_after_its_tap_is_named_compiled_or_not(compiled) -> None:
    def model(inplace):
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
        )

    at = kdx.make("knowledge", "attention-transfer", student="0", teacher="0")
    scheme = kdx.Offline(model(inplace=True), model(inplace=False), knowledge={"at": at})
    with pytest.raises(CaptureError, match="overwritten"):
        fit(scheme, [(torch.randn(4, 1, 6, 6), torch.zeros(4, dtype=torch.int64))], compile=compiled)


@pytest.mark.parametrize("name", ["bank", "average", "phases", "data-free"])
def test_a_run_is_bitwise_that_without_the_try(name, monkeypatch, net) -> None:
    view = View(Digits("train"), range(48))

    def trained():
        torch.manual_seed(0)
        if name == "bank":
            crd = kdx.make("knowledge", "crd", student="flat", teacher="flat", negatives=8)
            scheme = kdx.Offline(net(4, 10), net(6, 10), knowledge={"crd": crd})
        elif name == "average":
            scheme = kdx.make("scheme", "ema-teacher", net(4, 10))
        elif name == "data-free":
            scheme = kdx.make("scheme", "data-free", net(4, 10), net(6, 10), noise=8, width=4)
        else:
            scheme = kdx.Mutual([net(4, 10), net(4, 10)], knowledge={"kd": kdx.SoftTargets()}, updates="alternating")
        kdx.fit(scheme, DataLoader(view, 16, shuffle=True), epochs=2, seed=1, device="cpu")
        return scheme.state_dict() | {"drawn": torch.rand(1)}

    tried = trained()
    names = {"task", "kd", "crd", "generator/disagreement", "peer0/task", "peer0/kd", "peer1/task", "peer1/kd"}
    monkeypatch.setattr(Tryout, "_try", lambda *_: names)
    for key, value in trained().items():
        assert torch.equal(value, tried[key]), key


def test_generators_and_attributes_of_modules_are_put_back() -> None:
    drawn = []

    class Drawing(Mine):
        def __init__(self):
            super().__init__("nowhere")
            self.own, self.calls, self.kept = torch.Generator().manual_seed(5), 0, {}

        def forward(self, student, teacher, batch):
            drawn.append(torch.rand((), generator=self.own))
            self.calls, self.kept[len(drawn)], self.new = self.calls + 1, batch, True
            return super().forward(student, teacher, batch)

    part = Drawing()
    fit(kdx.Offline(Two(), Two(), knowledge={"mine": part}), BATCHES[:1])
    assert part.calls == 1
    assert part.kept.keys() == {2}
    assert drawn[0] == drawn[1]  # tried, and trained on


def test_the_graph_of_a_deep_model_is_walked_without_recursion() -> None:
    start = torch.ones((), requires_grad=True)
    end = start
    for _ in range(20_000):
        end = end * 1.0
    assert reaches(end, [start])
    assert not reaches(end, [torch.ones((), requires_grad=True)])
    assert reaches(start, [start])


def test_a_run_that_is_resumed_tries_its_first_batch_too(tmp_path) -> None:
    class Stop:
        @kdx.hookimpl
        def kdx_step_end(self, run, step):
            if step == 2:
                raise RuntimeError("enough")

    teacher = Two()
    good, bad = (kdx.Offline(Two(), teacher, knowledge={"mine": Mine(cut)}) for cut in ("nowhere", "loss"))
    with pytest.raises(kdx.errors.PluginError):
        fit(good, folder=tmp_path, epochs=2, observers=[Stop()])
    with pytest.raises(ValueError, match=r"'mine' .* teaches nothing"):
        fit(bad, folder=tmp_path, epochs=2, resume=True)


def ending(end: nn.Module, classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(4, classes), end)


@pytest.mark.parametrize("name", ["soft-targets", "reverse-kl", "jsd", "dist", "dkd", "logit-standardisation"])
@pytest.mark.parametrize("side", ["teacher", "student"])
def test_probabilities_are_named_where_a_softmax_of_them_would_be_taken(name, side) -> None:
    models = {"teacher": Two(), "student": Two()} | {side: ending(nn.Softmax(1))}
    scheme = kdx.Offline(**models, task=None, knowledge={"kd": kdx.make("knowledge", name)})
    with pytest.raises(ValueError, match=rf"'kd' \(\w+\) takes a softmax .*'logits' of the {side} .*{side}_output="):
        fit(scheme)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probabilities_of_a_teacher_in_half_precision_are_named(dtype) -> None:
    teacher = kdx.teachers.Frozen(ending(nn.Softmax(1)), dtype=dtype)
    with pytest.raises(ValueError, match="of the teacher holds probabilities"):
        fit(kdx.Offline(Two(), teacher, knowledge={"kd": kdx.SoftTargets()}))


def test_probabilities_of_pixels_are_named() -> None:
    def model(*end):
        return nn.Sequential(nn.Conv2d(1, 3, 1), *end)

    batch = torch.randn(1, 1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="of the teacher holds probabilities"):
        fit(kdx.Offline(model(), model(nn.Softmax(1)), knowledge={"kd": kdx.SoftTargets()}), [batch])


@pytest.mark.parametrize("task", [F.cross_entropy, nn.CrossEntropyLoss(), kdx.make("task", "classification")])
def test_a_student_whose_softmax_the_task_would_repeat_is_named(task) -> None:
    with pytest.raises(ValueError, match=r"outputs of 'student' are probabilities .* take a softmax"):
        fit(kdx.Supervised(ending(nn.Softmax(1)), task=task))


def test_a_sigmoid_that_the_task_would_repeat_is_named_and_small_logits_are_not() -> None:
    batches = [(torch.rand(8, 4), torch.randint(2, (8, 3)).float())]
    task = F.binary_cross_entropy_with_logits
    with pytest.raises(ValueError, match=r"outputs of 'student' are probabilities .*\(a sigmoid gave them\)"):
        fit(kdx.Supervised(ending(nn.Sigmoid()), task=task), batches)
    assert fit(kdx.Supervised(ending(nn.Hardtanh(0.1, 0.9)), task=task), batches).step == 1


@pytest.mark.parametrize(
    "end",
    [
        nn.LogSoftmax(1),
        nn.Threshold(100.0, 0.0),  # zeros
        nn.Threshold(100.0, 1 / 3),  # sums to 1, the same in every row
        nn.Hardtanh(0.0, 1.0),
    ],
    ids=repr,
)
def test_logits_that_look_a_little_like_probabilities_are_taken(end) -> None:
    assert fit(kdx.Offline(Two(), ending(end), knowledge={"kd": kdx.SoftTargets()})).step == 3


def test_one_hot_outputs_are_logits_and_knowledge_without_a_softmax_takes_probabilities() -> None:
    class Oracle(nn.Module):
        def forward(self, x):
            return F.one_hot(x.argmax(1) % 3, 3).float()

    assert fit(kdx.Offline(Two(), Oracle(), knowledge={"kd": kdx.SoftTargets()})).step == 3
    assert fit(kdx.Offline(Two(), ending(nn.Softmax(1)), knowledge={"kd": kdx.make("knowledge", "logits")})).step == 3
