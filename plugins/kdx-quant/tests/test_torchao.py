"""Weights of torchao: its kernels give what the student was trained to, the file is smaller, and is read again."""

import pytest
import torch
from kdx_quant.quantise import ByQuantise
from kdx_quant.torchao_weights import with_torchao
from torch import nn

import kdx
from kdx.analysis import measure_cost
from kdx.errors import StudentError
from kdx.training.checkpoint import export_weights


def _student(to: str, **options: object) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    x = torch.randn(16, 64)
    return kdx.students.derive(net, x[:2], how=ByQuantise(to=to, **options)).model.eval(), x


@pytest.mark.parametrize("to", ["int8-dynamic", "int8-int4-dynamic", "int8-weights", "int4-weights"])
def test_kernels_of_torchao_give_the_outputs_of_the_student(to: str) -> None:
    student, x = _student(to, steps="learned")
    model = with_torchao(student)
    with torch.no_grad():
        difference = (model(x) - student(x)).abs()
        assert difference.median() < 1e-5
        assert difference.max() < 0.02 * student(x).abs().max()  # a value between two levels may go to the other one
    assert all(type(layer.weight).__name__ == "Int8Tensor" for layer in model.modules() if isinstance(layer, nn.Linear))


def test_the_file_is_a_quarter_and_is_read_again(tmp_path) -> None:
    student, x = _student("int8-dynamic")
    model = with_torchao(student)
    export_weights(model, tmp_path / "student.safetensors")
    again = with_torchao(_student("int8-dynamic", steps="learned")[0])
    kdx.training.load_weights(again, tmp_path / "student.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    cost = measure_cost(model, x[:1], repeats=3)
    assert cost.bits < 9.5
    assert cost.parameters == 64 * 65 * 2 + 65 * 8


@pytest.mark.parametrize(("to", "what"), [("int8", "another layer"), ("w4a6-dynamic", "to 8 bits, '2' has 6")])
def test_ranges_that_torchao_has_no_kernel_for_are_refused(to: str, what: str) -> None:
    with pytest.raises(StudentError, match=what):
        with_torchao(_student(to, ends=2)[0] if "6" not in to else _student(to)[0])
