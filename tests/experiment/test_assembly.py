"""The parts of a stage, built from a recipe and a source of models that is no folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kdx
from kdx.experiment.assembly import Assembly
from kdx.experiment.components import NEEDS, needs_of
from kdx.experiment.plan import stages_of
from kdx.ref import Ref
from kdx.schemes.supervised import Supervised
from kdx.stage import Produced, Stage, Structure, Term
from kdx.teachers import Frozen
from kdx.training.checkpoint import export_weights
from tests.experiment.tiny import recipe

MODEL = Ref("mlp", hidden=[8, 8])


class InMemory:
    """A source whose stages have the weights of the files given, and keep what is produced in a dictionary."""

    def __init__(self, **files: Path) -> None:
        self.files = files
        self.kept: dict[str, Produced] = {}

    def produced(self, stage: str) -> Produced | None:
        return self.kept.get(stage)

    def keep(self, stage: str, produced: Produced) -> None:
        self.kept[stage] = produced

    def weights(self, stage: str) -> Path | None:
        return self.files.get(stage)

    def result(self, stage: str) -> dict[str, Any]:
        return {"stage": stage}

    def quality(self, stage: str) -> float:
        return {"teacher": 0.9}[stage]

    def stored(self, teacher: str, rows, model: nn.Module):
        return teacher, len(rows), model


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(value.equal(other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Weights of the teacher's model."""
    torch.manual_seed(3)
    model = kdx.make("model", "mlp", hidden=[24, 16], num_classes=10, input_shape=(1, 8, 8))
    export_weights(model, tmp_path / "teacher.safetensors")
    return tmp_path / "teacher.safetensors"


class Everything(Supervised):
    """A scheme whose signature names all that an experiment builds."""

    def __init__(self, student, teacher, teachers, peers, *, task, knowledge, qualities, own=1) -> None:
        super().__init__(student, task=task)
        self.given = {name: value for name, value in locals().items() if name in NEEDS}


class Fewer(Supervised):
    def __init__(self, student, *, knowledge=None, student_output=None) -> None:
        super().__init__(student)


def test_a_scheme_needs_what_its_signature_names() -> None:
    assert needs_of(Everything) == NEEDS
    assert needs_of(Fewer) == {"student", "knowledge"}


def test_a_scheme_is_given_all_that_it_needs(plugged, trained: Path) -> None:
    class Plugin:
        @kdx.hookimpl
        def kdx_schemes(self):
            return [kdx.Spec("everything", f"{__name__}:Everything", "for a test")]

    plugged(Plugin(), "everything")
    given = recipe(scheme="everything", peers=3, task={"weight": 0.5})
    assembly = Assembly(given, stages_of(given), InMemory(teacher=trained))
    stage = Stage("distilled", "distilled", MODEL, ("teacher",), knowledge={"a": Term("logits", weight=2.0)})
    parts = assembly.scheme(stage).given
    student = parts["student"]
    assert [type(peer) for peer in parts["peers"]] == [type(student)] * 3
    assert parts["peers"][0] is student
    assert parts["task"][0] == 0.5
    assert [(name, weight) for name, (weight, _) in parts["knowledge"].items()] == [("a", 2.0)]
    assert parts["qualities"] == {"teacher": 0.9}
    assert list(parts["teachers"]) == ["teacher"]
    assert isinstance(parts["teacher"], Frozen)
    assert same(parts["teacher"].model, assembly.model("teacher"))


def test_a_stage_under_no_scheme_trains_on_its_labels_and_begins_with_the_weights_of_another(trained: Path) -> None:
    given = recipe()
    assembly = Assembly(given, stages := stages_of(given), InMemory(teacher=trained))
    teacher, alone = stages[0], stages[1]
    assert isinstance(scheme := assembly.scheme(teacher), Supervised)
    assert not same(scheme.student, assembly.model("teacher"))  # it is about to be trained
    again = Stage("again", "probe", teacher.model, start="teacher")
    assembly = Assembly(given, [*stages, again], InMemory(teacher=trained))
    assert same(assembly.student(again), assembly.model("teacher"))
    torch.manual_seed(0)
    one = assembly.student(alone)
    torch.manual_seed(0)
    assert same(one, assembly.scheme(alone).student)


class Narrow(Structure):
    calls = 0

    def produce(self, finished) -> Produced:
        type(self).calls += 1
        assert finished.result("teacher") == {"stage": "teacher"}
        assert finished.quality("teacher") == 0.9
        ref = finished.ref("teacher").with_options(hidden=[4, 4])
        assert finished.parameters(ref) == sum(value.numel() for value in finished.build(ref).parameters())
        return Produced(ref, {name: torch.ones_like(v) for name, v in finished.build(ref).state_dict().items()})


def test_a_structure_is_made_once_and_kept_by_the_source(trained: Path) -> None:
    Narrow.calls = 0
    given = recipe()
    stage = Stage("narrow", "alone", Narrow())
    source = InMemory(teacher=trained)
    assembly = Assembly(given, [*stages_of(given), stage], source)
    state = torch.get_rng_state()
    assert assembly.ref("narrow") == Ref("mlp", hidden=[4, 4])
    assert torch.get_rng_state().equal(state)
    assert all(value.eq(1).all() for value in assembly.student(stage).parameters())
    assert Narrow.calls == 1
    later = Assembly(given, [*stages_of(given), stage], source)
    assert later.ref("narrow") == source.kept["narrow"].model
    assert Narrow.calls == 1
