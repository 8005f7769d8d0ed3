"""The derivation: the kit's checks, which layers, at which widths, and what is refused."""

import copy
import json

import pytest
import torch
from kdx_quant.layers import Quantised, unrounded
from kdx_quant.quantise import ByQuantise
from kdx_quant.widths import NAMES, Widths, read_widths
from torch import nn
from typer.testing import CliRunner

import kdx
from kdx.authoring import app
from kdx.errors import StudentError
from kdx.testing import StudentTags, parametrize_checks


@parametrize_checks(ByQuantise(to="w4a8"), tags=StudentTags(fewer_parameters=False))
def test_conformance(check) -> None:
    check()


def _derived(model: nn.Module, inputs: torch.Tensor, **options: object):
    return kdx.students.derive(model, inputs, how=ByQuantise(**options))


@pytest.mark.parametrize(("name", "form"), NAMES.items())
def test_names_of_widths_stand_for_their_forms(name: str, form: str) -> None:
    assert read_widths(name) == read_widths(form)


def test_a_width_that_is_none_says_what_is_one() -> None:
    with pytest.raises(StudentError, match=r"expected int8, .* as w4, w4a8 or w4a8-dynamic; got 'int16'"):
        ByQuantise(to="int16")


def test_first_and_last_layer_keep_eight_bits() -> None:
    teacher = kdx.make("model", "convnet", width=4, num_classes=10, input_shape=(1, 28, 28))
    student = _derived(teacher, torch.zeros(2, 1, 28, 28), to="w3a4")
    widths = student.edit.layers
    assert list(widths) == ["stage1.conv1", "stage2.conv1", "stage3.conv1", "stage4.conv1", "fc"]
    assert widths["fc"] == widths["stage1.conv1"] == Widths(weights=8, activations=8)
    assert widths["stage2.conv1"] == Widths(weights=3, activations=4)
    assert set(_derived(teacher, torch.zeros(2, 1, 28, 28), to="w3a4", ends=2).edit.layers.values()) == {
        Widths(weights=3, activations=4)
    }


def test_names_weights_and_taps_stay(net) -> None:
    teacher = net()
    student = _derived(teacher, torch.zeros(2, 1, 8, 8), to="int8").model
    assert teacher.state_dict().keys() <= student.state_dict().keys()
    assert all(torch.equal(student.state_dict()[name], value) for name, value in teacher.state_dict().items())
    captured = kdx.Taps(student, ["conv", "fc:input"])(torch.rand(2, 1, 8, 8))
    assert captured["conv"].shape == (2, 4, 8, 8)


def test_layers_that_cannot_be_quantised_are_named_and_refused_if_so_chosen() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attend = nn.Embedding(7, 8), nn.MultiheadAttention(8, 2, batch_first=True)
            self.up = nn.ConvTranspose1d(8, 8, 1)
            self.fc = nn.Linear(8, 3)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embed(tokens)
            x = self.attend(x, x, x)[0]
            return self.fc(self.up(x.transpose(1, 2)).mean(2))

    tokens = torch.zeros(2, 5, dtype=torch.int64)
    student = _derived(Tied(), tokens, to="int8-weights")
    assert list(student.edit.layers) == ["fc"]
    kept = {item.module: item.reason for item in student.kept}
    assert set(kept) == {"embed (Embedding)", "attend (MultiheadAttention)", "up (ConvTranspose1d)"}
    assert "reads its weights as tensors" in kept["attend (MultiheadAttention)"]
    with pytest.raises(StudentError, match=r"embed \(Embedding\).*Name them in skip=, or others=keep"):
        _derived(Tied(), tokens, to="int8-weights", others="refuse")
    _derived(Tied(), tokens, to="int8-weights", others="refuse", skip=["embed", "attend", "up"])


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(StudentError, match="it has no layers with weights"):
        _derived(nn.Flatten(), torch.zeros(2, 3), to="int8")


def test_dynamic_ranges_leave_convolutions_alone(net) -> None:
    student = _derived(net(), torch.zeros(2, 1, 8, 8), to="int8-dynamic")
    assert list(student.edit.layers) == ["fc"]
    assert "dynamic ranges are those of rows" in student.kept[0].reason


def test_a_pattern_in_skip_must_name_a_layer(net) -> None:
    with pytest.raises(StudentError, match="skip: 'konv' names no layer of Sequential"):
        _derived(net(), torch.zeros(2, 1, 8, 8), skip="konv")


def test_it_is_built_again_from_its_config_alone_and_once(tmp_path) -> None:
    teacher = kdx.make("model", "convnet", width=4, num_classes=10, input_shape=(1, 28, 28))
    student = kdx.students.derive(
        teacher,
        torch.zeros(2, 1, 28, 28),
        how={"name": "quantise", "to": "w4a8", "steps": "learned"},
        base={"name": "convnet", "width": 4},
        shape={"num_classes": 10, "input_shape": (1, 28, 28)},
    )
    student.model.train()(torch.rand(4, 1, 28, 28))
    config, weights = student.save(tmp_path / "student.yaml")
    built = kdx.students.build(config)
    kdx.training.load_weights(built, weights)
    x = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(built.eval()(x), student.model.eval()(x), rtol=0, atol=0)
    with pytest.raises(StudentError, match="quantised already"):
        student.edit.build(built)


@pytest.mark.parametrize("steps", ["range", "learned"])
def test_copies_and_averages_and_autocast_are_those_of_any_model(net, steps: str) -> None:
    model = _derived(net(), torch.zeros(2, 1, 8, 8), to="w4a8", steps=steps).model.train()
    teacher = kdx.teachers.EMA(model, decay=0.5)
    x = torch.rand(8, 1, 8, 8)
    model(x)
    teacher.step_end(1, 2)
    assert all(layer.input_rounding.is_set for layer in teacher.average.modules() if isinstance(layer, Quantised))
    again = copy.deepcopy(model).eval()
    torch.testing.assert_close(again(x), model.eval()(x), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16


def test_a_quantised_student_resumes_to_the_same_end(net, loader, tmp_path) -> None:
    def scheme() -> kdx.Offline:
        torch.manual_seed(1)
        student = _derived(net(), torch.zeros(2, 1, 8, 8), to="w4a8", steps="learned").model
        return kdx.Offline(student, net(6), knowledge={"kd": kdx.SoftTargets(4.0)})

    whole, halves = scheme(), scheme()
    torch.manual_seed(2)
    kdx.fit(whole, loader, epochs=2, folder=tmp_path / "whole")
    torch.manual_seed(2)
    with pytest.raises(kdx.StopRun):
        kdx.fit(halves, loader, epochs=2, folder=tmp_path / "halves", observers=[_Stop()])
    again = scheme()
    kdx.fit(again, loader, epochs=2, folder=tmp_path / "halves", resume=True)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)


class _Stop:
    @kdx.hookimpl
    def kdx_epoch_end(self, run, row) -> None:
        raise kdx.StopRun("half")


def test_the_command_line_makes_one_by_its_bits(tmp_path) -> None:
    out = tmp_path / "student.yaml"
    done = CliRunner().invoke(app, ["student", "make", "convnet:width=2", "--quantise", "w4a8", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert kdx.students.read_config(out).edits[0].layers["stage2.conv1"] == Widths(weights=4, activations=8)


@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")
def test_a_stage_of_a_recipe_writes_the_file_and_reports_it(tmp_path) -> None:
    recipe = tmp_path / "int8.yaml"
    recipe.write_text(
        """
        data: {dataset: {name: digits}, validation: 100}
        teacher: {model: {name: mlp, hidden: [24]}, train: {epochs: 4}}
        student: {model: {name: derived, how: {name: quantise, to: int8, files: [torch-export]}}}
        knowledge: {kd: {name: soft-targets, weight: 0.9}}
        train: {epochs: 1}
        controls: []
        """
    )
    kdx.run(recipe, folder=tmp_path / "run")
    result = json.loads((tmp_path / "run" / "distilled" / "result.json").read_text())
    found = result["artifacts"]["torch-export"]
    assert abs(found["test"]["accuracy"] - result["test"]["accuracy"]) <= 0.005
    assert found["bytes"] == (tmp_path / "run" / "distilled" / "student.pt2").stat().st_size
    assert found["latency_ms"] > 0


def test_files_are_of_a_known_kind(net) -> None:
    with pytest.raises(
        StudentError, match="files: expected of onnx, onnx-int4, onnx-float, torch-export, got 'tflite'"
    ):
        ByQuantise(files=["tflite"])


def test_a_package_that_files_need_and_that_is_missing_is_named_before_training(net, monkeypatch) -> None:
    monkeypatch.setattr("kdx_quant.files.find_spec", lambda name: None if name == "onnxscript" else True)
    with pytest.raises(
        StudentError, match=r"files: onnx needs onnxscript: pip install onnxscript; or write files: \[\]"
    ):
        _derived(net(), torch.zeros(2, 1, 8, 8))
    _derived(net(), torch.zeros(2, 1, 8, 8), files=[])


def test_without_rounding_a_student_is_its_teacher_again(net) -> None:
    teacher, x = net().eval(), torch.rand(2, 1, 8, 8)
    student = _derived(teacher, x, to="w2a2").model
    assert str(unrounded(student)) == str(teacher)
    torch.testing.assert_close(unrounded(student).eval()(x), teacher(x), rtol=0, atol=0)
