"""Modules that the user put into evaluation mode stay in it while the rest of the student trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

import kdx
from kdx.errors import Interrupted
from tests.stopping import Stop

DATA = [(torch.randn(8, 4), torch.arange(8) % 3) for _ in range(3)]


class Net(nn.Module):
    """A body of layers, and a head with BatchNorm and dropout; it notes the modes in which its layers train."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.norm, self.fc = nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.seen: dict[str, set[bool]] = {}

    def forward(self, x):
        if torch.is_grad_enabled():
            for name, module in self.named_modules():
                self.seen.setdefault(name, set()).add(module.training)
        return self.fc(self.norm(self.body(x)))


def statistics(norm: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in norm.buffers()]


def trained(student: Net, **options: Any) -> dict[str, set[bool]]:
    kdx.fit(kdx.Supervised(student), DATA, device="cpu", **options)
    return student.seen


@pytest.mark.parametrize("frozen", [True, False])
def test_layers_in_evaluation_mode_stay_in_it(frozen, tmp_path) -> None:
    student = Net()
    student.norm.eval()
    student.body[2].eval()
    student.norm.requires_grad_(not frozen)
    before = statistics(student.norm)
    seen = trained(student, epochs=2, evaluate=DATA, prequential=True, accumulate=2, folder=tmp_path)
    assert seen == {
        "": {True},
        "body": {True},
        "body.0": {True},
        "body.1": {True},
        "body.2": {False},
        "norm": {False},
        "fc": {True},
    }
    assert all(torch.equal(now, then) for now, then in zip(student.norm.buffers(), before, strict=True))
    assert student.body[1].num_batches_tracked == 6
    assert [student.norm.training, student.body[2].training, student.body[1].training] == [False, False, True]


def test_a_student_in_evaluation_mode_is_trained_in_training_mode_but_for_frozen_norms() -> None:
    student = Net().eval()
    student.norm.requires_grad_(False)
    student.body[0].requires_grad_(False)
    before = statistics(student.norm)
    assert {name for name, modes in trained(student).items() if modes == {False}} == {"norm"}
    assert all(torch.equal(now, then) for now, then in zip(student.norm.buffers(), before, strict=True))


def test_a_part_in_evaluation_mode_that_is_trained_is_asked_about() -> None:
    for keep, expected in ((True, {False}), (False, {True})):
        student = Net()
        student.body.eval()
        with pytest.raises(
            ValueError, match=r"'body' of 'student' is in evaluation mode.*keep_eval=True .*keep_eval=False"
        ):
            trained(student)
        assert student.body[1].num_batches_tracked == 0
        seen = trained(student, keep_eval=keep)
        assert seen["body"] == seen["body.1"] == seen["body.2"] == expected
    frozen = Net()
    frozen.body.eval().requires_grad_(False)
    assert trained(frozen)["body.1"] == {False}
    whole = Net().eval()
    assert trained(whole, keep_eval=True)[""] == {False}


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning")
def test_an_exported_student_is_refused_by_name() -> None:
    student = torch.export.export(nn.Linear(4, 3), (DATA[0][0],)).module()
    with pytest.raises(ValueError, match=r"student is an exported graph.*train the model that it was made from"):
        kdx.fit(kdx.Supervised(student), DATA, device="cpu")


def test_a_pretrained_body_in_a_model_of_ones_own_is_asked_about() -> None:
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert, self.fc = transformers.BertModel(config).eval(), nn.Linear(8, 3)  # as from_pretrained gives it

        def forward(self, ids):
            return self.fc(self.bert(ids).pooler_output)

    data = [(torch.randint(20, (4, 5)), torch.arange(4) % 3)]
    with pytest.raises(ValueError, match="'bert' of 'student' is in evaluation mode"):
        kdx.fit(kdx.Supervised(Classifier()), data, device="cpu")
    kdx.fit(kdx.Supervised(Classifier().train()), data, device="cpu")


def test_every_learner_keeps_the_modes_of_its_layers() -> None:
    for name, nets in (("mutual", [[Net(), Net()]]), ("online", [Net(), Net()])):
        learners = nets[0] if name == "mutual" else nets
        learners[1].norm.eval()
        options = {"updates": "alternating"} if name == "mutual" else {}
        scheme = kdx.make("scheme", name, *nets, knowledge={"kd": kdx.SoftTargets(1.0)}, **options)
        kdx.fit(scheme, DATA, device="cpu", evaluate=DATA)
        assert learners[1].seen["norm"] == {False}
        assert learners[0].seen["norm"] == {True}


def test_parts_that_a_scheme_wraps_keep_their_modes() -> None:
    def cnn(mode: bool) -> nn.Sequential:
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), *pool).train(mode)

    images = [(torch.randn(4, 1, 6, 6), torch.arange(4) % 3)]
    for mode in (True, False):
        student = cnn(mode)
        layers = {"student_layer": "1", "teacher_layer": "1", "classifier": "4"}
        kdx.fit(kdx.make("scheme", "simkd", student, cnn(True), **layers), images, device="cpu")
        assert student[1].num_batches_tracked == 1
        student = cnn(mode)
        kdx.fit(kdx.make("scheme", "one", student, split="1", export="ensemble"), images, device="cpu")
        assert student[1].num_batches_tracked == 1


def test_a_resumed_run_keeps_them_too(tmp_path) -> None:
    def run(folder, **options):
        torch.manual_seed(0)
        student = Net()
        student.norm.eval()
        kdx.fit(kdx.Supervised(student), DATA, epochs=2, device="cpu", folder=folder, seed=0, **options)
        return student

    unbroken = run(tmp_path / "a")
    with pytest.raises(Interrupted):
        run(tmp_path / "b", observers=[Stop(2)])
    resumed = run(tmp_path / "b", resume=True)
    assert resumed.seen["norm"] == {False}
    for ours, theirs in zip(resumed.state_dict().values(), unbroken.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
