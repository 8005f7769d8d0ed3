"""What a derivation says about itself in its tags: data, frozen parameters, as many parameters as the teacher."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

import kdx
import kdx.modes
from kdx.students import Derivation, Edit, Plan
from kdx.testing import CheckFailed, StudentTags, check_student, checks_of, toy_batches, toy_teacher
from tests.testing.mutants.student import FreezesSilently, Sound


class Scale(Edit):
    """Multiplies what goes into a layer by a number that is not trained.

    Args:
        factor: 1 changes nothing.
    """

    how: Literal["scale"] = "scale"
    factor: float

    def build(self, model):
        if self.factor != 1.0:
            model.act = Scaled(self.factor)

    def derive(self, model, inputs):
        self.build(model)
        return {}


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x.relu() * self.factor


class ByScale(Derivation):
    """Scales by the mean of the training rows."""

    edit = Scale
    needs_budget = False
    needs_data = True

    def plan(self, model, inputs, data):
        mean = torch.cat([batch.inputs for batch in data.batches()]).mean().item()
        assert 0 <= data.evaluate(model)["accuracy"] <= 1
        with kdx.modes.evaluating(model):
            assert data.task(model(next(data.batches()).inputs), next(data.batches()).targets).isfinite()
        return Plan(2, lambda place: Scale(factor=(mean, 1.0)[place]), [])


def test_a_derivation_that_needs_data_is_tried_on_toy_batches_or_those_of_the_tags() -> None:
    check_student(ByScale(), tags=StudentTags(fewer_parameters=False))
    given = StudentTags(teacher=toy_teacher, data=toy_batches(2, seed=1), fewer_parameters=False)
    check_student(ByScale(), tags=given)
    with pytest.raises(CheckFailed, match="it needs data: give batches for this teacher in StudentTags"):
        check_student(ByScale(), tags=StudentTags(teacher=toy_teacher, fewer_parameters=False))


def test_as_many_parameters_as_the_teacher_are_a_defect_unless_the_tags_say_so() -> None:
    with pytest.raises(CheckFailed, match="fails the check 'rising_cost'") as caught:
        check_student(ByScale())
    assert str(caught.value).count("fails the check") == 1
    assert "rising_cost" not in {check.name for check in checks_of(ByScale(), tags=StudentTags(fewer_parameters=False))}


def test_frozen_parameters_are_named_and_have_to_be_frozen() -> None:
    check_student(FreezesSilently(), tags=StudentTags(frozen=("fc.w*",)), expected_failures={"documented": "a mutant"})
    with pytest.raises(CheckFailed, match=r"'fc\.weight' is trained, and the tags say frozen"):
        check_student(Sound(), tags=StudentTags(frozen=("fc.weight",)))


def test_a_kit_for_mappings_of_inputs() -> None:
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))

        def forward(self, rows):
            return {"logits": self.net(rows)}

    def made():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Named()

    rows = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    check_student(kdx.make("student", "width"), tags=StudentTags(teacher=made, inputs={"rows": rows}))
