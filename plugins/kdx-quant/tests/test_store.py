"""Teachers held as int8: the kit's checks, outputs near the teacher's, a quarter of the bytes, in a recipe."""

import json

import pytest
import torch
from kdx_quant.store import ByStore, StoredTeacher

import kdx
from kdx.analysis import measure_cost
from kdx.testing import parametrize_checks

pytestmark = pytest.mark.filterwarnings("ignore::kdx.assistants.gap.GapWarning")


@parametrize_checks(ByStore())
def test_conformance(check) -> None:
    check()


@parametrize_checks(StoredTeacher())
def test_conformance_of_the_plan(check) -> None:
    check()


def test_a_stored_teacher_has_a_quarter_of_the_bytes_and_nearly_the_outputs() -> None:
    teacher = kdx.make("model", "convnet", width=24, num_classes=10, input_shape=(1, 28, 28)).eval()
    x = torch.rand(8, 1, 28, 28)
    stored = kdx.students.derive(teacher, x[:2], how=ByStore()).model.eval()
    with torch.no_grad():
        expected, got = teacher(x), stored(x)
    assert (got - expected).abs().max() < 0.02 * expected.abs().max()
    whole, small = measure_cost(teacher, x[:1], repeats=3), measure_cost(stored, x[:1], repeats=3)
    assert small.bytes < 0.28 * whole.bytes


def test_it_teaches_in_a_recipe(tmp_path) -> None:
    recipe = tmp_path / "int8.yaml"
    recipe.write_text(
        """
        data: {dataset: {name: digits}, validation: 100}
        teacher: {model: {name: mlp, hidden: [64]}, train: {epochs: 4}}
        student: {model: {name: mlp, hidden: [8]}}
        assistant: {name: int8-teacher}
        knowledge: {kd: {name: soft-targets, weight: 0.9}}
        train: {epochs: 1}
        controls: []
        """
    )
    kdx.run(recipe, folder=tmp_path / "run")
    results = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "run").glob("*/result.json")}
    assert results["distilled"]["teachers"] == ["int8-teacher"]
    assert results["int8-teacher"]["bytes"] < 0.4 * results["teacher"]["bytes"]
    difference = results["int8-teacher"]["test"]["accuracy"] - results["teacher"]["test"]["accuracy"]
    assert abs(difference) < 0.02
