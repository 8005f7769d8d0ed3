"""A student taken home: loaded, used on files, evaluated, exported, and what does not suit it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import kdx
from kdx.cli.app import app
from kdx.errors import CheckpointError, DamagedError, ExportError, FileError, RecipeError, TrustError
from kdx.experiment import TrainedModel, export
from kdx.experiment.data import ExperimentData
from kdx.experiment.description import Description
from kdx.experiment.evaluated import evaluate_run
from kdx.experiment.recipe_files import load_recipe
from kdx.training.checkpoint import export_weights
from tests.experiment.tiny import TINY

TEACHER = {**TINY["teacher"], "train": {"epochs": 8, "batch_size": 32, "optimizer": {"name": "AdamW", "lr": 0.01}}}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run on digits."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    kdx.run({**TINY, "teacher": TEACHER}, folder=folder)
    return folder


def test_the_student_of_a_run_is_ready_to_be_used(run) -> None:
    student = kdx.load(run)
    assert isinstance(student, TrainedModel)
    assert not student.training
    assert student.classes == tuple("0123456789")
    test = kdx.datasets.Digits("test")
    with torch.no_grad():
        found = (student(test.images).argmax(1) == test.targets).float().mean().item()
    assert found == pytest.approx(json.loads((run / "distilled/result.json").read_text())["test"]["accuracy"])
    teacher = kdx.load(run, stage="teacher")
    assert sum(each.numel() for each in teacher.parameters()) > sum(each.numel() for each in student.parameters())


def test_the_weights_alone_are_enough(run, tmp_path) -> None:
    moved = shutil.copy(run / "distilled/student.safetensors", tmp_path / "net.safetensors")
    inputs = torch.randn(3, 1, 8, 8)
    assert kdx.load(moved)(inputs).equal(kdx.load(run)(inputs))
    described = Description.read(moved)
    assert (described.recipe, described.stage, described.model.name) == ("recipe", "distilled", "mlp")
    assert (moved.stat().st_mode & 0o777) == 0o666 & ~_umask()


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_files_are_read_as_the_data_were(run, tmp_path) -> None:
    digits = kdx.datasets.Digits("test")
    raw = (digits.images[:3] * digits.std + digits.mean).squeeze(1)
    files = []
    for number, pixels in enumerate(raw):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).numpy()).save(files[-1])
    student = kdx.load(run)
    found = list(student.predict(files, batch_size=2))
    with torch.no_grad():
        expected = student(digits.images[:3])
    assert [each.name for each in found] == list(map(str, files))
    for each, outputs in zip(found, expected, strict=True):
        torch.testing.assert_close(each.values, outputs.softmax(0), atol=0.02, rtol=0)  # 8 bits for 17 values
        assert each.label == str(int(outputs.argmax()))
    [row] = json.loads(CliRunner().invoke(app, ["predict", str(run), str(files[0]), "--json"]).stdout)
    assert row["label"] == found[0].label
    shown = CliRunner().invoke(app, ["predict", str(run), *map(str, files), "--top", "2"])
    assert shown.stdout.splitlines()[0].startswith(f"{files[0]}: {found[0].label} ")
    assert shown.stdout.splitlines()[0].count("%") == 2


def test_a_run_is_evaluated_as_its_result_says(run) -> None:
    result = json.loads((run / "distilled/result.json").read_text())["test"]
    assert dict(evaluate_run(run)) == result
    done = CliRunner().invoke(app, ["evaluate", str(run), "--json"])
    assert json.loads(done.stdout) == pytest.approx(result)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "fashion-mnist"}, r"data \(fashion-mnist\): its inputs have the shape \[1, 28, 28\], .* \[1, 8, 8\]"),
        ({"name": "digitz"}, "did you mean 'digits'"),
        ({"rows": 3}, "rows"),
    ],
)
def test_data_that_do_not_suit_the_student_are_refused(run, data, message) -> None:
    with pytest.raises((RecipeError, kdx.errors.UnknownNameError), match=message):
        evaluate_run(run, data)


@pytest.mark.parametrize("to", ["safetensors", "torch-export", "onnx"])
def test_an_exported_file_gives_the_students_outputs(run, tmp_path, to) -> None:
    path, difference = kdx.export(run, to, tmp_path / "net")
    assert difference <= {"safetensors": 0.0}.get(to, 1e-4)
    rows = torch.randn(7, 1, 8, 8)
    with torch.no_grad():
        expected = kdx.load(run)(rows)
    if to == "safetensors":
        found = kdx.load(path)(rows).detach()
    elif to == "torch-export":
        found = torch.export.load(path).module()(rows).detach()
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"inputs": rows.numpy()})[0])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert [each.name for each in tmp_path.iterdir()] == ["net"]


def test_the_command_writes_beside_the_run(run) -> None:
    done = CliRunner().invoke(app, ["export", str(run), "--to", "torch-export"])
    assert done.exit_code == 0, done.output
    assert "loaded again, its outputs are the student's" in done.stdout
    (run / "distilled/student.pt2").unlink()


def test_an_export_with_other_outputs_is_refused_and_not_kept(run, tmp_path, monkeypatch) -> None:
    from kdx.experiment import exporting as module

    kept = tmp_path / "net.pt2"
    kept.write_text("from before")
    writers = {
        **module._WRITERS,
        "torch-export": lambda student, inputs, path: path.write_text("x") and (lambda x: student(x) + 0.5),
    }
    monkeypatch.setattr(module, "_WRITERS", writers)
    with pytest.raises(ExportError, match=r"gives other outputs than the student: the largest difference is 0\.\d+ of"):
        kdx.export(run, "torch-export", kept)
    assert kept.read_text() == "from before"
    assert len(list(tmp_path.iterdir())) == 1


class Branching(nn.Module):
    """A network that looks at values, which no graph holds."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Linear(64, num_classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        flat = inputs.flatten(1)
        return self.layer(flat if float(flat.sum()) > 0 else -flat)


def test_a_network_that_has_no_graph_is_refused(run, tmp_path, monkeypatch) -> None:
    student = kdx.load(run)
    student.model = Branching(10, (1, 8, 8))
    monkeypatch.setattr("kdx.experiment.exporting.load", lambda *_, **__: student)
    for to in ("torch-export", "onnx"):
        with pytest.raises(ExportError, match=r"cannot take the model: \w+"):
            kdx.export(run, to, tmp_path / "net", inputs=torch.randn(4, 1, 8, 8))
    with pytest.raises(ExportError, match="hf: Branching is no model of transformers"):
        kdx.export(run, "hf", tmp_path / "net", inputs=torch.randn(4, 1, 8, 8))
    assert not list(tmp_path.iterdir())


def test_what_is_no_run_is_named(run, tmp_path) -> None:
    with pytest.raises(FileError, match="there is no run"):
        kdx.load(tmp_path / "nothing")
    with pytest.raises(FileError, match="has no finished stage 'distiled'; did you mean 'distilled'"):
        kdx.load(run, stage="distiled")
    with pytest.raises(ExportError, match="to: expected one of safetensors, torch-export, onnx, hf, got 'tflite'"):
        kdx.export(run, "tflite")
    export_weights(nn.Linear(2, 2), tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="does not say what model it is of"):
        kdx.load(tmp_path / "plain.safetensors")
    weights = bytearray((run / "distilled/student.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(weights)
    with pytest.raises(DamagedError):
        kdx.load(tmp_path / "bad.safetensors")


NETS = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes, input_shape):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))

def Bert(num_classes, input_shape):
    from transformers import ViTConfig, ViTForImageClassification
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8,
                       patch_size=4, num_channels=1, num_labels=num_classes)
    return ViTForImageClassification(config)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A recipe whose student is in a file beside it."""
    (tmp_path / "nets.py").write_text(NETS)
    recipe = {**TINY, "teacher": TEACHER, "student": {"model": {"name": "nets.py:Net"}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def test_a_student_of_ones_own_code_is_loaded_from_the_copy_when_it_is_trusted(own) -> None:
    kdx.run(own / "mine.yaml", folder=own / "run", report=False)
    (own / "nets.py").unlink()
    with pytest.raises(TrustError, match=r"code/nets\.py \(sha256 [0-9a-f]{16}\) is in the folder of a run"):
        kdx.load(own / "run")
    for trust in (True, str(own / "run/code/nets.py")):
        assert kdx.load(own / "run", trust=trust)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    path, _ = kdx.export(own / "run", "onnx", trust=True)
    assert path == own / "run/distilled/student.onnx"
    assert evaluate_run(own / "run", trust=True)["accuracy"] > 0


def test_a_model_of_transformers_is_exported_for_from_pretrained(own, tmp_path) -> None:
    kdx.run(own / "mine.yaml", folder=own / "run", report=False, **{"student.model": {"name": "nets.py:Bert"}})
    path, difference = kdx.export(own / "run", "hf", own / "hf", trust=True)
    from transformers import AutoModelForImageClassification

    again = AutoModelForImageClassification.from_pretrained(path).eval()
    rows = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(again(pixel_values=rows).logits, kdx.load(own / "run", trust=True)(rows))
    assert difference <= 1e-6
    with pytest.raises(FileError, match="is there already"):
        kdx.export(own / "run", "hf", own / "hf", trust=True)


def test_tables_and_quantities_are_predicted(tmp_path) -> None:
    draw = np.random.default_rng(0)
    rows = "\n".join(f"{x:.3f},{'ab'[k % 2]},{2 * x + k % 2:.3f}" for k, x in enumerate(draw.normal(size=300)))
    (tmp_path / "table.csv").write_text("x,kind,y\n" + rows + "\n")
    values = {
        **TINY,
        "data": {
            "dataset": {
                "name": "csv",
                "file": str(tmp_path / "table.csv"),
                "test": 0.2,
                "target": "y",
                "kind": "quantity",
            },
            "validation": 40,
        },
        "teacher": TEACHER,
        "task": {"name": "regression"},
        "knowledge": {"kd": {"name": "hint", "student": "logits", "teacher": "logits"}},
        "controls": [],
    }
    kdx.run(values, folder=tmp_path / "run", report=False)
    (tmp_path / "new.csv").write_text("kind,x\na,1.0\nb,0.0\n")
    found = list(kdx.load(tmp_path / "run").predict(tmp_path / "new.csv"))
    assert [each.name for each in found] == [f"{tmp_path / 'new.csv'}:{line}" for line in (2, 3)]
    assert all(each.values.shape == (1,) and each.label is None for each in found)
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), "--data", f"{{test: {tmp_path / 'table.csv'}}}"])
    assert done.exit_code == 0, done.output
    (tmp_path / "other.csv").write_text("x,kind,y\n1,a,2\n3,b,7\n")  # its own statistics play no part
    alone = f"{{file: {tmp_path / 'other.csv'}, test: {tmp_path / 'other.csv'}}}"
    again = json.loads(CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), "--data", alone, "--json"]).stdout)
    (tmp_path / "same.csv").write_text("kind,x\na,1\nb,3\n")
    rows = torch.stack([each.values[0] for each in kdx.load(tmp_path / "run").predict(tmp_path / "same.csv")])
    assert again["mae"] == pytest.approx((rows - torch.tensor([2.0, 7.0])).abs().mean().item(), abs=1e-5)


def test_images_of_another_normalisation_are_refused(tmp_path) -> None:
    draw = np.random.default_rng(0)
    for name in ("dark", "light"):
        for split, count in (("train", 30), ("test", 6)):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 128, (9, 8, 3), dtype=np.uint8) + (127 if name == "light" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / split / name / f"{number}.png")
    data = {"name": "image-folder", "folder": str(tmp_path / "photos"), "size": 8}
    kdx.run(
        {**TINY, "data": {"dataset": data, "validation": 10}, "teacher": TEACHER}, folder=tmp_path / "run", report=False
    )
    [found] = kdx.load(tmp_path / "run").predict(tmp_path / "photos/test/light/0.png")
    assert found.label in ("dark", "light")
    with pytest.raises(RecipeError, match="prepares its inputs in another way"):
        evaluate_run(tmp_path / "run", {"fit": "stretch"})
    (tmp_path / "photos/train/dark").rename(tmp_path / "photos/train/black")
    (tmp_path / "photos/test/dark").rename(tmp_path / "photos/test/black")
    with pytest.raises(RecipeError, match=r"its classes are black, light, and the student's are dark, light"):
        evaluate_run(tmp_path / "run")


def test_the_report_ends_with_the_lines_that_use_the_student(run) -> None:
    page = (run / "report.html").read_text()
    assert "student = kdx.load(" in page
    assert f"kdx export {run} --to onnx" in page
    assert f"kdx predict {run} FILE" in page


def test_the_metadata_hold_what_it_takes(run) -> None:
    described = Description.read(run / "distilled/student.safetensors")
    assert described.preprocessing["mean"] == [0.306]
    assert described.classes == tuple("0123456789")
    assert load_file(run / "distilled/student.safetensors").keys() == kdx.load(run).model.state_dict().keys()
    test = ExperimentData(load_recipe(run / "recipe.yaml")).test
    assert list(test[0].inputs.shape) == list(described.shape["input_shape"])
    assert export.__module__ == "kdx.experiment.exporting"
