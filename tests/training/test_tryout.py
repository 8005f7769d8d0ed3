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


@pytest.mark.parametrize("name", ["bank", "average", "phases"])
def test_a_run_is_bitwise_that_without_the_try(name, monkeypatch, net) -> None:
    view = View(Digits("train"), range(48))

    def trained():
        torch.manual_seed(0)
        if name == "bank":
            crd = kdx.make("knowledge", "crd", student="flat", teacher="flat", negatives=8)
            scheme = kdx.Offline(net(4, 10), net(6, 10), knowledge={"crd": crd})
        elif name == "average":
            scheme = kdx.make("scheme", "ema-teacher", net(4, 10))
        else:
            scheme = kdx.Mutual([net(4, 10), net(4, 10)], knowledge={"kd": kdx.SoftTargets()}, updates="alternating")
        kdx.fit(scheme, DataLoader(view, 16, shuffle=True), epochs=2, seed=1, device="cpu")
        return scheme.state_dict() | {"drawn": torch.rand(1)}

    tried = trained()
    names = {"task", "kd", "crd"} | {f"peer{peer}/{term}" for peer in (0, 1) for term in ("task", "kd")}
    monkeypatch.setattr(Tryout, "_try", lambda *_: names)
    for key, value in trained().items():
        assert torch.equal(value, tried[key]), key


def test_generators_and_extra_state_of_modules_are_put_back() -> None:
    class Drawing(Mine):
        def __init__(self):
            super().__init__("nowhere")
            self.own, self.calls = torch.Generator().manual_seed(5), 0
            self.drawn = []

        def get_extra_state(self):
            return self.calls

        def set_extra_state(self, state):
            self.calls = state

        def forward(self, student, teacher, batch):
            self.calls += 1
            self.drawn.append(torch.rand((), generator=self.own))
            return super().forward(student, teacher, batch)

    part = Drawing()
    fit(kdx.Offline(Two(), Two(), knowledge={"mine": part}), BATCHES[:1])
    assert part.calls == 1
    assert part.drawn[0] == part.drawn[1]  # tried, and trained on


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

    good, bad = (kdx.Offline(Two(), Two(), knowledge={"mine": Mine(cut)}) for cut in ("nowhere", "loss"))
    with pytest.raises(kdx.errors.PluginError):
        fit(good, folder=tmp_path, epochs=2, observers=[Stop()])
    with pytest.raises(ValueError, match=r"'mine' .* teaches nothing"):
        fit(bad, folder=tmp_path, epochs=2, resume=True)
