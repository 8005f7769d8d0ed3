"""Weights of torchao: its kernels give what the student was trained to, the file is smaller, and is read again."""

import sys

import pytest
import torch
from kdx_quant.quantise import ByQuantise
from kdx_quant.torchao_weights import with_torchao
from torch import nn

import kdx
from kdx.analysis import measure_cost
from kdx.errors import StudentError
from kdx.training import export_weights


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


def test_a_transformer_of_hugging_face_is_quantised_trained_and_given_integer_kernels() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=3, **sizes)).eval()
    batch = {"input_ids": torch.randint(0, 50, (4, 7)), "attention_mask": torch.ones(4, 7, dtype=torch.int64)}
    student = kdx.students.derive(bert, batch, how=ByQuantise(to="int8-int4-dynamic"))
    assert len(student.edit.layers) == 2 * 6 + 2
    assert {item.module.rpartition(".")[2] for item in student.kept} == {
        "word_embeddings (Embedding)",
        "position_embeddings (Embedding)",
        "token_type_embeddings (Embedding)",
    }
    scheme = kdx.Offline(student.model, bert, task=None, knowledge={"kd": kdx.SoftTargets(2.0)})
    scheme((batch, torch.zeros(4, dtype=torch.int64))).total.backward()
    assert all(layer.weight.grad is not None for layer in student.model.modules() if isinstance(layer, nn.Linear))
    student.model.eval()
    with torch.no_grad():
        expected, got = student.model(**batch).logits, with_torchao(student.model)(**batch).logits
    assert (got - expected).abs().max() < 0.02 * expected.abs().max()
    with pytest.raises(StudentError, match="models that take one tensor, this one takes dict"):
        kdx.students.derive(bert, batch, how=ByQuantise(files=["onnx"]))


def test_without_torchao_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ModuleNotFoundError, match=r"torchao>=0\.18"):
        with_torchao(nn.Linear(2, 2))
