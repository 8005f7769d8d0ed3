"""Taps that find modules under the names of the model that a student was made from."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import fx, nn

import kdx
from kdx.errors import CaptureError
from kdx.students import alias_taps, tap_exported


class Net(nn.Module):
    """A stage of convolution, normalisation and activation, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Sequential()
        self.stage.add_module("conv", nn.Conv2d(1, 4, 3, padding=1))
        self.stage.add_module("norm", nn.BatchNorm2d(4))
        self.stage.add_module("relu", nn.ReLU())
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.stage(x).mean((2, 3)))


X = torch.randn(5, 1, 6, 6)


def fused(model: Net) -> fx.GraphModule:
    """The model with its normalisation folded into the convolution, as a graph that calls no ``stage``."""
    graph = fx.symbolic_trace(copy.deepcopy(model).eval())
    graph.stage.conv = nn.utils.fuse_conv_bn_eval(graph.stage.conv, graph.stage.norm)
    (norm,) = [node for node in graph.graph.nodes if node.target == "stage.norm"]
    norm.replace_all_uses_with(norm.args[0])
    graph.graph.erase_node(norm)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    made = Net()
    made.stage.norm.running_mean.uniform_(-1, 1)
    return made.eval()


def test_a_tap_of_old_finds_the_module_in_its_place_with_its_layout(model) -> None:
    student = fused(model)
    with pytest.raises(CaptureError, match=r"tap 'stage\.norm' names no module"):
        kdx.Taps(student, ["stage.norm"])
    alias_taps(student, {"stage.norm": "stage.conv", "stage": "stage.relu"})
    names = ["stage.norm", "stage", "s*"]
    wanted, found = kdx.Taps(model, names[:2])(X), kdx.Taps(student, names)(X)
    for name in names[:2]:
        torch.testing.assert_close(found[name], wanted[name])
        assert found.layouts[name] == wanted.layouts[name]
    assert found.names("s*") == ["stage"]


def test_aliases_survive_a_copy_and_follow_later_edits(model) -> None:
    student = fused(model)
    alias_taps(student, {"stage.norm": "stage.conv"})
    alias_taps(student, {"stage.conv": "stage.relu"})
    copied = copy.deepcopy(student)
    found = kdx.Taps(copied, ["stage.norm", "stage.conv"])(X)
    assert found["stage.norm"].equal(found["stage.conv"])
    assert found["stage.norm"].min() == 0  # what the activation gives
    whole = nn.Sequential(copied, nn.Softmax(1))
    assert kdx.Taps(whole, ["0.stage.norm"])(X)["0.stage.norm"].equal(found["stage.norm"])


def test_errors_name_both(model) -> None:
    student = fused(model)
    with pytest.raises(
        CaptureError, match=r"'stage\.norm' cannot stand for 'stage\.conw', .*did you mean 'stage\.conv'"
    ):
        alias_taps(student, {"stage.norm": "stage.conw"})
    alias_taps(student, {"stage.norm": "stage.conv"})
    student.stage.conv, student.stage.cnv = nn.Identity(), student.stage.conv
    del student.stage.conv
    with pytest.raises(CaptureError, match=r"tap 'stage\.norm \(now stage\.conv\)' names no module"):
        kdx.Taps(student, ["stage.norm"])
    alias_taps(student, {"stage.norm": "stage"})
    student = fused(model)
    alias_taps(student, {"stage.norm": "stage"})
    with pytest.raises(CaptureError, match=r"'stage\.norm \(now stage\)'\] did not run"):
        kdx.Taps(student, ["stage.norm"])(X)


def test_knowledge_reads_a_fused_student_by_the_names_of_its_teacher(model) -> None:
    student = fused(model)
    alias_taps(student, {"stage.norm": "stage.conv"})
    attention = kdx.knowledge.AttentionTransfer(student="stage.norm", teacher="stage.norm")
    scheme = kdx.Offline(student, model, task=None, knowledge={"at": (1.0, attention)})
    run = kdx.fit(scheme, [(X, torch.zeros(5, dtype=torch.int64))], device="cpu", progress=False)
    assert run.history[0]["train/at"] == pytest.approx(0.0, abs=1e-9)
    plain = kdx.Offline(Net(), model, task=None, knowledge={"at": (1.0, copy.deepcopy(attention))})
    other = kdx.fit(plain, [(X, torch.zeros(5, dtype=torch.int64))], device="cpu", progress=False)
    assert other.history[0]["train/at"] > 1e-6


def test_an_exported_graph_is_tapped_at_modules_of_its_model(model) -> None:
    student = torch.export.export(model, (X,)).module()
    with pytest.raises(CaptureError, match=r"no operation of the graph comes from .*did you mean 'stage\.relu'"):
        tap_exported(student, ["stage.rel"])
    tap_exported(student, ["stage.relu", "stage", "stage.conv"])
    names = ["stage.relu", "stage", "stage.conv", "fc"]
    wanted = kdx.Taps(model, names)(X)
    found = kdx.Taps(student, names[:3])(X)
    for name in names[:3]:
        torch.testing.assert_close(found[name], wanted[name])
    torch.testing.assert_close(found.logits if "logits" in found else student(X), wanted["fc"])
