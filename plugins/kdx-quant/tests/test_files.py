"""Files of quantised students: another runtime gives the student's outputs, with integers, from fewer bytes."""

from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from kdx_quant.files import read_onnx, write_onnx, write_torch_export
from kdx_quant.layers import Quantised
from kdx_quant.onnx_graph import pack_four_bits
from kdx_quant.quantise import ByQuantise
from kdx_quant.stored import Stored, converted
from torch import nn

import kdx
from kdx.errors import StudentError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _trained(model: nn.Module, rows: torch.Tensor, **options: object) -> nn.Module:
    """A student that has taken a few steps towards telling bright rows from dark ones."""
    student = kdx.students.derive(model, rows[:2], how=ByQuantise(**options)).model.train()
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    targets = (rows.flatten(1).mean(1) > rows.mean()).long()
    for _ in range(8):
        loss = nn.functional.cross_entropy(student(rows), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student.eval()


def _rows(count: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(count, 1, 16, 16, generator=generator) * torch.rand(count, 1, 1, 1, generator=generator)


def _net(kind: str) -> nn.Module:
    torch.manual_seed(4)
    if kind == "usual":  # the norm behind the convolution, some of its scales below 0
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 2),
        )  # fmt: skip
        nn.init.uniform_(net[1].weight, -1, 1)
        nn.init.uniform_(net[4].weight, -1, 1)
        return net
    return kdx.make("model", kind, num_classes=2, input_shape=(1, 16, 16))


@pytest.mark.parametrize("kind", ["usual", "convnet", "resnet"])
@pytest.mark.parametrize("to", ["int8", "w4a4"])
def test_the_stored_student_gives_the_outputs_of_the_trained_one(kind: str, to: str) -> None:
    rows = _rows()
    student = _trained(_net(kind), rows, to=to, steps="learned")
    stored = converted(student)
    with torch.no_grad():
        expected, got = student(rows), stored(rows)
    assert (got - expected).abs().max() <= 1e-2 * expected.abs().max()
    assert (got.argmax(1) == expected.argmax(1)).all()
    assert any(isinstance(layer, Stored) for layer in stored.modules())
    assert not any(parameter.requires_grad for parameter in stored.parameters())


@pytest.fixture(scope="module", params=[("usual", "int8"), ("convnet", "w4a4")], ids=lambda param: param[0])
def written(request, tmp_path_factory) -> tuple[nn.Module, Path]:
    """A student and its ONNX file."""
    kind, to = request.param
    path = tmp_path_factory.mktemp(kind) / "student.onnx"
    student = _trained(_net(kind), _rows(), to=to)
    write_onnx(student, _rows(1), path)
    return student, path


def _check_outputs(student: nn.Module, run: Callable[[torch.Tensor], torch.Tensor]) -> None:
    rows = _rows(256)
    with torch.no_grad():
        expected = student(rows)
    got = run(rows)
    assert got.shape == expected.shape
    assert (got.argmax(1) == expected.argmax(1)).float().mean() >= 0.99
    assert (got - expected).abs().mean() <= 1e-2 * expected.abs().mean()


def test_onnxruntime_gives_the_predictions_of_the_student(written) -> None:
    student, path = written
    _check_outputs(student, read_onnx(path))


def test_onnxruntime_computes_convolutions_with_integers_and_without_norms(written, tmp_path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(written[1]), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert "QLinearConv" in kinds
    assert not {"BatchNormalization", "Relu"} & set(kinds)


def test_weights_of_four_bits_are_packed_two_in_a_byte(written, tmp_path) -> None:
    student, path = written
    model, layers = onnx.load(path), [layer for layer in student.modules() if isinstance(layer, Quantised)]
    pack_four_bits(model)
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "packed.onnx")
    few = sum(layer.weight.numel() for layer in layers if layer.weight_rounding.bits <= 4)
    saved = path.stat().st_size - (tmp_path / "packed.onnx").stat().st_size
    assert 0.45 * few - 100 <= saved <= 0.5 * few + 100
    _check_outputs(student, read_onnx(tmp_path / "packed.onnx"))


def test_a_file_has_a_byte_for_each_weight_and_little_else(written) -> None:
    student, path = written
    weights = sum(layer.weight.numel() for layer in student.modules() if isinstance(layer, Quantised))
    assert path.stat().st_size <= weights + 7000


def test_a_program_of_torch_export_gives_the_outputs_of_the_student(tmp_path) -> None:
    rows = _rows()
    student = _trained(_net("resnet"), rows, to="int8")
    run = write_torch_export(student, rows[:1], tmp_path / "student.pt2")
    with torch.no_grad():
        torch.testing.assert_close(run(rows), converted(student)(rows))


def test_a_student_that_saw_no_batch_is_not_written(net, tmp_path) -> None:
    student = kdx.students.derive(net(), torch.zeros(2, 1, 8, 8), how=ByQuantise()).model
    with pytest.raises(StudentError, match="must see a batch in training before it is stored"):
        write_onnx(student, torch.zeros(2, 1, 8, 8), tmp_path / "student.onnx")
