"""Weights of quantised models in files: tensors of torchao, and what no file of weights can hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdx.errors import CheckpointError, DamagedError
from kdx.seal import read_metadata
from kdx.training import load_weights
from kdx.training.checkpoint import check_exportable, export_weights, load_tensors
from kdx.training.weights import read_tensors
from tests.analysis.quantised import EXAMPLE, MODELS, net, torchao_model

TORCHAO = ["int8-weights", "int8", "int4-weights", "int8-int4"]


def trained(name: str) -> nn.Module:
    """A quantised model with other weights than a new one has."""
    model = MODELS[name]()
    other = net()
    with torch.no_grad():
        for value in other.parameters():
            value.mul_(1.5)
    quantised = {key: value for key, value in model.state_dict().items() if type(value) is torch.Tensor}
    model.load_state_dict({key: other.state_dict()[key] for key in quantised}, strict=False)
    model[5].weight.qdata.add_(1)
    return model


@pytest.mark.parametrize("name", TORCHAO)
@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_tensors_of_torchao_are_written_and_read_as_they_are(name: str, form: str, tmp_path: Path) -> None:
    model, fresh = trained(name), MODELS[name]()
    path = tmp_path / f"w.{form}"
    if form == "safetensors":
        export_weights(model, path, {"more": "metadata"})
        assert read_metadata(path)["more"] == "metadata"
    else:
        torch.save(model.state_dict(), path)
    with torch.no_grad():
        assert not fresh(EXAMPLE).equal(model(EXAMPLE))
    load_weights(fresh, path, sealed=form == "safetensors")
    with torch.no_grad():
        assert fresh(EXAMPLE).equal(model(EXAMPLE))
    assert type(fresh[5].weight) is type(model[5].weight)
    found = read_tensors(path)
    assert sorted(found) == sorted(model.state_dict())
    assert found["5.weight"].qdata.equal(model[5].weight.qdata)


def test_the_file_is_as_small_as_its_integers_and_other_programs_read_it(tmp_path: Path) -> None:
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    path = tmp_path / "w.safetensors"
    model = torchao_model("Int8WeightOnlyConfig")
    export_weights(model, path)
    export_weights(net(), tmp_path / "float.safetensors")
    assert path.stat().st_size < 0.45 * (tmp_path / "float.safetensors").stat().st_size
    found, left = unflatten_tensor_state_dict(load_file(path), read_metadata(path))
    assert found["7.weight"].dequantize().equal(model[7].weight.dequantize())
    assert "7.bias" in left


def test_parts_of_a_tensor_in_several_files_are_put_together(tmp_path: Path) -> None:
    model, fresh = trained("int8"), MODELS["int8"]()
    export_weights(model, tmp_path / "whole.safetensors")
    tensors = load_file(tmp_path / "whole.safetensors")
    metadata = {
        name: value for name, value in read_metadata(tmp_path / "whole.safetensors").items() if "kdx" not in name
    }
    shards = {f"model-{number}-of-2.safetensors": sorted(tensors)[number - 1 :: 2] for number in (1, 2)}
    for file, names in shards.items():  # as transformers writes them: each file with all metadata
        save_file({name: tensors[name] for name in names}, tmp_path / file, metadata)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, names in shards.items() for name in names}}))
    load_weights(fresh, index)
    with torch.no_grad():
        assert fresh(EXAMPLE).equal(model(EXAMPLE))


def test_a_tensor_without_a_module_around_it_is_written_too(tmp_path: Path) -> None:
    import torchao.quantization as ao

    holder = nn.Sequential(nn.Linear(64, 32))
    ao.quantize_(holder, ao.Int8WeightOnlyConfig())
    export_weights(holder[0], tmp_path / "w.safetensors")
    assert load_tensors(tmp_path / "w.safetensors")["weight"].qdata.equal(holder[0].weight.qdata)


def test_quantised_and_plain_weights_do_not_meet(tmp_path: Path) -> None:
    quantised, plain = tmp_path / "quantised.safetensors", tmp_path / "plain.safetensors"
    export_weights(MODELS["int8"](), quantised)
    export_weights(net(), plain)
    with pytest.raises(
        CheckpointError, match=r"5\.weight is quantised, and that of the model is a Parameter; quantise"
    ):
        load_weights(net(), quantised)
    with pytest.raises(CheckpointError, match=r"5\.weight is not quantised, and .*; load it before the model is quant"):
        load_weights(MODELS["int8"](), plain)
    with pytest.raises(CheckpointError, match=r"5\.weight is quantised as .*quantise the model in the same way"):
        load_weights(MODELS["int8-weights"](), quantised)


@pytest.mark.parametrize("name", ["eager", "fx", "dynamic"])
def test_packed_weights_are_refused_with_what_to_write(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    with pytest.raises(CheckpointError, match=r"packed by torch\.ao\.quantization.*; write the weights before convert"):
        export_weights(model, tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())
    export_weights(net(), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"packed by torch\.ao\.quantization.*before convert\(\)"):
        load_weights(model, tmp_path / "w.safetensors")


def test_what_safetensors_cannot_hold_is_named(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"seen": 3}

    with pytest.raises(CheckpointError, match=r"Sequential: 0\._extra_state is a dict.*as buffers, or"):
        check_exportable(nn.Sequential(Extra(2, 2)))
    sparse = nn.Linear(2, 2)
    sparse.register_buffer("edges", torch.eye(2).to_sparse())
    with pytest.raises(CheckpointError, match=r"Linear: edges is laid out as torch\.sparse_coo.*to_dense"):
        export_weights(sparse, tmp_path / "w.safetensors")


def forged(path: Path, change) -> None:
    """A file of torchao's tensors with other metadata, without a seal, as another program would write it."""
    export_weights(MODELS["int8"](), path)
    tensors = load_file(path)
    metadata = {name: value for name, value in read_metadata(path).items() if not name.startswith("kdx")}
    entry = json.loads(metadata["5.weight"])
    change(entry, tensors)
    metadata["5.weight"] = json.dumps(entry)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "change",
    [
        lambda entry, _: entry.update(_type="Popen"),
        lambda entry, _: entry["_data"].update(dtype={"_type": "torch.dtype", "_data": "load"}),
        lambda entry, _: entry["_data"].update(act_quant_kwargs={"_type": "os.system", "_data": {}}),
        lambda entry, _: entry["_data"].update(more=1),
        lambda entry, _: entry.update(_data=[]),
        lambda _, tensors: tensors.pop("5._weight_scale"),
    ],
    ids=["class", "dtype", "inner-class", "argument", "data", "part"],
)
def test_metadata_of_a_stranger_name_nothing_but_settings_of_tensors(change, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    forged(path, lambda entry, tensors: None)
    assert load_tensors(path)["5.weight"].qdata.dtype == torch.int8  # the forgery itself can be read
    forged(path, change)
    with pytest.raises(DamagedError, match="its quantised tensors cannot be put together"):
        load_tensors(path)


def test_plain_weights_are_written_and_read_without_torchao(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from torch import nn; from kdx.training.weights import load_weights; "
        "from kdx.training.checkpoint import export_weights; import torch; model = nn.Linear(2, 1); "
        f"export_weights(model, Path({str(tmp_path)!r}, 'w.safetensors')); torch.save(model.state_dict(), 'w.pt'); "
        "load_weights(model, 'w.safetensors'); load_weights(model, 'w.pt'); print('torchao' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "False"


def test_a_file_of_torchao_asks_for_it_where_it_is_not_installed(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "w.safetensors"
    export_weights(MODELS["int8"](), path)
    monkeypatch.setitem(sys.modules, "torchao.prototype.safetensors.safetensors_support", None)
    with pytest.raises(CheckpointError, match="pip install torchao"):
        load_tensors(path)
