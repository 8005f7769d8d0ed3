"""Derivations that look at training rows: in Python, in a recipe, on the command line."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import kdx
from kdx.cli.app import app
from kdx.errors import RecipeError, StudentError
from kdx.experiment.experiment import Experiment
from kdx.students import Derivation, Edit, Plan, StudentData, build, derive
from kdx.testing import toy_batches, toy_teacher
from tests.experiment.tiny import TINY, recipe

EXAMPLE = torch.zeros(2, 1, 8, 8)


class Shift(Edit):
    """Sets the bias of the last layer to the mean of the inputs that were looked at."""

    how: Literal["shift"] = "shift"
    layer: str
    mean: float

    def build(self, model):
        nn.init.constant_(model.get_submodule(self.layer).bias, self.mean)

    def derive(self, model, inputs):
        self.build(model)
        return {}


class ByShift(Derivation):
    """Looks at the inputs of all training rows, twice.

    Args:
        layer: whose bias it sets.
    """

    edit = Shift
    needs_budget = False
    needs_data = True
    seen: list = []  # noqa: RUF012

    def __init__(self, *, layer: str = "fc") -> None:
        self.layer = layer

    def plan(self, model, inputs, data):
        means = [torch.cat([batch.inputs for batch in data.batches()]).mean().item() for _ in range(2)]
        assert means[0] == means[1]
        batch = next(iter(data.batches()))
        assert data.task(model(batch.inputs), batch.targets).isfinite()
        self.seen.append(data.evaluate(model)["accuracy"])
        return Plan(2, lambda place: Shift(layer=self.layer, mean=means[0]), [])


@pytest.fixture(autouse=True)
def plugin(plugged):
    class Plugin:
        @kdx.hookimpl
        def kdx_students(self):
            return [kdx.Spec("shift", f"{__name__}:ByShift", "for a test")]

    ByShift.seen.clear()
    plugged(Plugin(), "shift")


def data(**options):
    return StudentData(toy_batches(2), task=kdx.make("task", "classification"), validation=toy_batches(1), **options)


def test_a_derivation_is_given_the_data_and_writes_what_it_decided_into_the_edit() -> None:
    base = {"target": "kdx.testing:toy_teacher"}
    student = derive(toy_teacher(), EXAMPLE, how="shift", data=data(), base=base)
    mean = torch.cat([batch.inputs for batch in toy_batches(2)]).mean().item()
    assert student.edit == Shift(layer="fc", mean=mean)
    assert build(student.config).fc.bias.tolist() == pytest.approx([mean] * 3)  # without data
    assert len(ByShift.seen) == 1


def test_without_data_it_is_refused_in_python_and_by_the_command(tmp_path) -> None:
    with pytest.raises(StudentError, match=r"shift decides by training rows.*pass data=kdx\.students\.StudentData"):
        derive(toy_teacher(), EXAMPLE, how="shift")
    command = ["student", "make", "mlp", "--how", "shift", "--data", "digits", "--out", str(tmp_path / "s.yaml")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code != 0
    assert "kdx student make has none" in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_data_that_can_be_gone_through_only_once_and_missing_validation_rows_are_refused() -> None:
    task = kdx.make("task", "classification")
    with pytest.raises(TypeError, match=r"loader: expected batches that can be gone through several times.*generator"):
        StudentData((each for each in toy_batches()), task=task)
    with pytest.raises(TypeError, match=r"validation: expected batches .* give list\(validation\)"):
        StudentData(toy_batches(), task=task, validation=iter(toy_batches()))
    with pytest.raises(StudentError, match="held-out rows, and none were given: pass validation="):
        StudentData(toy_batches(), task=task).evaluate(toy_teacher())


def test_it_evaluates_as_kdx_does_and_leaves_modes_and_random_state() -> None:
    model, state = toy_teacher().train(), torch.get_rng_state()
    found = data().evaluate(model)
    assert found == kdx.training.evaluate(model, toy_batches(1), metrics=data().task.metrics)
    assert found.higher_is_better["accuracy"]
    assert model.training
    assert torch.get_rng_state().equal(state)


@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning", "ignore::kdx.assistants.gap.GapWarning")
def test_a_recipe_gives_the_rows_that_the_student_may_see(tmp_path) -> None:
    student = {"model": {"name": "derived", "how": {"name": "shift", "layer": "fc"}}}
    given = recipe(student=student, data={**TINY["data"], "labelled": 100}, controls=[])
    experiment = Experiment(given, tmp_path / "run", report=False)
    summary = experiment.run()
    few = experiment.data.few
    edit = Shift.model_validate(experiment.assembly.ref("distilled").options["config"]["edits"][0])
    inputs = torch.stack([few.dataset[row][0] for row in few.indices.tolist()])
    assert edit.mean == pytest.approx(inputs.mean().item())
    assert ByShift.seen == [summary["stages"]["teacher"]["validation"]["accuracy"]]


class Careless(ByShift):
    """Runs the teacher in the mode in which it is."""

    def plan(self, model, inputs, data):
        model(inputs + 3)
        return super().plan(model, inputs, data)


def test_statistics_of_a_teacher_stay_as_they_are_when_a_derivation_runs_it() -> None:
    teacher = toy_teacher().train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    derive(teacher, EXAMPLE, how=Careless(), data=data())
    assert all(value.equal(before[name]) for name, value in teacher.state_dict().items())
    assert teacher.training


def test_a_derivation_in_a_file_is_refused_before_anything_runs() -> None:
    with pytest.raises(RecipeError, match=r"student\.model\.how: 'mine\.py:ByMine' is in a file, .* --kind student"):
        recipe(student={"model": {"name": "derived", "how": "mine.py:ByMine"}})


def test_a_student_begins_without_the_gradients_of_its_teacher() -> None:
    teacher = toy_teacher()
    teacher(torch.ones(2, 1, 8, 8)).sum().backward()
    student = derive(teacher, EXAMPLE, how="shift", data=data())
    assert all(parameter.grad is None for parameter in student.model.parameters())
    assert any(parameter.grad is not None for parameter in teacher.parameters())
