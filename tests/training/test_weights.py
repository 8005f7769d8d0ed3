"""Weights in files of every usual form: read without running anything, mapped by what is written, compared by name."""

import copy
import json
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdx.errors import CheckpointError, DamagedError, FileError, KdxError
from kdx.training import load_weights
from kdx.weights_file import WeightsFile


@pytest.fixture
def trained(net):
    made = net()
    with torch.no_grad():
        for value in made.state_dict().values():
            value.add_(torch.rand_like(value.double()).to(value.dtype)).add_(1)
    return made


def same(one: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(value.equal(state[name]) for name, value in one.state_dict().items())


def shards(folder, state, write, ending):
    """Two files and their index, as transformers writes large models."""
    names = list(state)
    parts = {f"model-1-of-2{ending}": names[:3], f"model-2-of-2{ending}": names[3:]}
    for file, held in parts.items():
        write({name: state[name] for name in held}, folder / file)
    index = folder / {".bin": "pytorch_model.bin.index.json"}.get(ending, "model.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": {n: f for f, held in parts.items() for n in held}}))
    return index


@pytest.mark.parametrize("form", ["safetensors", "pt", "bin", "state_dict", "model", "model_state_dict", "ema"])
def test_a_file_of_any_usual_form_is_loaded(form, trained, net, tmp_path) -> None:
    state = trained.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.bin" if form == "bin" else "w.pth.tar")
    if form == "safetensors":
        save_file(state, path)
    elif form in ("pt", "bin"):
        torch.save(state, path)
    else:
        torch.save({"epoch": 3, {"ema": "state_dict_ema"}.get(form, form): state, "optimizer": {"lr": 0.1}}, path)
    fresh = net()
    load_weights(fresh, path)
    assert same(fresh, trained)


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
@pytest.mark.parametrize("given", ["index", "folder"])
def test_weights_in_several_files_are_loaded(ending, given, trained, net, tmp_path) -> None:
    index = shards(tmp_path, trained.state_dict(), save_file if ending == ".safetensors" else torch.save, ending)
    fresh = net()
    load_weights(fresh, index if given == "index" else tmp_path)
    assert same(fresh, trained)


def test_a_folder_of_transformers_is_loaded_tied_weights_too(tmp_path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=30, max_position_embeddings=16, **sizes)
    first, fresh = BertForMaskedLM(config), BertForMaskedLM(config)
    first.save_pretrained(tmp_path)
    assert not same(fresh, first)
    load_weights(fresh, tmp_path)
    assert same(fresh, first)
    body = copy.deepcopy(fresh.bert)
    nn.init.zeros_(body.embeddings.word_embeddings.weight)
    load_weights(body, {"file": tmp_path, "prefix": "bert."})
    assert same(body, first.bert)


def test_names_are_mapped_by_prefix_rename_and_skip(trained, net, tmp_path) -> None:
    state = trained.state_dict()
    renamed = {name.replace("conv.", "stem.conv."): value for name, value in state.items()}
    held = {f"module.student.{name}": value for name, value in renamed.items()} | {"module.teacher.x": torch.ones(1)}
    torch.save(held, tmp_path / "w.pt")
    fresh = net()
    load_weights(fresh, {"file": tmp_path / "w.pt", "prefix": "module.student.", "rename": {"stem.conv": "conv"}})
    assert same(fresh, trained)
    other, drawn = net(classes=5), net(classes=5)
    other.load_state_dict(drawn.state_dict())
    torch.save(state, tmp_path / "plain.pt")
    load_weights(other, {"file": tmp_path / "plain.pt", "skip": ["fc"]})
    assert other.fc.weight.equal(drawn.fc.weight)
    assert other.conv.weight.equal(trained.conv.weight)
    with pytest.raises(CheckpointError, match=r"skip: no name of the model begins with 'head'; it has conv\.weight"):
        load_weights(other, {"file": tmp_path / "plain.pt", "skip": ["head"]})
    whole = nn.Sequential()
    whole.add_module("body", net())
    load_weights(whole, {"file": tmp_path / "plain.pt", "rename": {"": "body."}})
    assert same(whole.body, trained)


def test_a_beginning_is_whole_parts_of_a_name(tmp_path) -> None:
    model = nn.Sequential()
    model.add_module("layer1", nn.Linear(1, 1))
    model.add_module("layer10", nn.Linear(1, 1))
    state = {name.replace("layer1.", "first."): torch.full_like(v, 3.0) for name, v in model.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    load_weights(model, {"file": tmp_path / "w.pt", "rename": {"first": "layer1"}})
    assert all((value == 3).all() for value in model.state_dict().values())
    load_weights(model, {"file": tmp_path / "w.pt", "rename": {"first": "layer1"}, "skip": ["layer1"]})
    with pytest.raises(CheckpointError, match=r"rename: no name begins with 'fir'; the file has first\.weight"):
        load_weights(model, {"file": tmp_path / "w.pt", "rename": {"fir": "layer1"}})
    with pytest.raises(CheckpointError, match=r"the map gives two tensors the name 'layer10\.weight'"):
        load_weights(model, {"file": tmp_path / "w.pt", "rename": {"first": "layer10"}})


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda state: {f"module.{k}": v for k, v in state.items()}, r"prefix: module\.\}"),
        (lambda state: {f"_orig_mod.{k}": v for k, v in state.items()}, r"prefix: _orig_mod\.\}"),
        (lambda state: {k.replace("fc.", "head."): v for k, v in state.items()}, r"rename: \{head: fc\}\}"),
        (
            lambda state: {k: torch.zeros(9, *v.shape[1:]) if "fc" in k else v for k, v in state.items()},
            r"skip: \[fc\]\}, if fc is to stay as it is drawn",
        ),
    ],
    ids=["module", "compiled", "renamed", "classifier"],
)
def test_what_does_not_fit_says_what_to_write(change, advice, trained, net, tmp_path) -> None:
    torch.save(change(trained.state_dict()), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=rf"do not fit Sequential: .*Write weights: \{{file: .*w\.pt, {advice}"):
        load_weights(net(), tmp_path / "w.pt")


def test_a_part_that_a_larger_model_has_as_its_own_says_the_rename(trained, net, tmp_path) -> None:
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    whole = nn.Sequential()
    whole.add_module("encoder", net())
    with pytest.raises(CheckpointError, match=r"rename: \{'': encoder\.\}\}"):
        load_weights(whole, tmp_path / "w.pt")


def test_weights_of_another_architecture_are_refused_with_ten_names_at_most(net, tmp_path) -> None:
    many = nn.Sequential(*[nn.Linear(2, 3) for _ in range(40)])
    torch.save(many.state_dict(), tmp_path / "w.pt")
    fresh = net()
    before = copy.deepcopy(fresh)
    with pytest.raises(CheckpointError, match=r"are missing .*are not in the model .*another architecture") as caught:
        load_weights(fresh, tmp_path / "w.pt")
    names = [*fresh.state_dict(), *many.state_dict()]
    listed = [word.strip("(),;:.") for word in str(caught.value).split()]
    assert 2 <= sum(word in names for word in listed) <= 10
    assert same(fresh, before)


def test_old_files_without_counters_of_batches_are_loaded(trained, net, tmp_path) -> None:
    state = {name: value for name, value in trained.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "w.pt")
    fresh = net()
    load_weights(fresh, tmp_path / "w.pt")
    assert fresh.norm.running_mean.equal(trained.norm.running_mean)
    assert int(fresh.norm.num_batches_tracked) == 0


class Attack:
    """Leaves a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_what_is_no_state_dict_is_refused_and_nothing_of_it_runs(trained, net, tmp_path) -> None:
    state = trained.state_dict()
    torch.save(trained, tmp_path / "whole.pt")
    torch.save({"state_dict": state, "args": Attack(tmp_path / "ran")}, tmp_path / "attack.pt")
    torch.save({"state_dict": state, "state_dict_ema": state}, tmp_path / "two.pt")
    torch.save({"net": state, "epoch": 1}, tmp_path / "unusual.pt")
    torch.save({"epoch": 1}, tmp_path / "none.pt")
    torch.save([1], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("no tensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.index.json").write_text("{}")
    (tmp_path / "out.index.json").write_text(json.dumps({"weight_map": {"a": "../w.safetensors"}}))
    for name, error, message in [
        ("whole.pt", CheckpointError, r"as a whole model does, .* torch\.save\(model\.state_dict\(\)"),
        ("attack.pt", CheckpointError, "nothing of it is run"),
        ("two.pt", CheckpointError, r"the state dict\(s\) state_dict, state_dict_ema; .*entry: state_dict\}"),
        ("unusual.pt", CheckpointError, r"the state dict\(s\) net; .*entry: net\}"),
        ("none.pt", CheckpointError, "holds no state dict, name -> tensor, but 'epoch'"),
        ("list.pt", CheckpointError, "holds one list"),
        ("text.pt", KdxError, "text.pt"),
        ("nothing.pt", FileError, "nothing.pt"),
        ("nothing.safetensors", FileError, "nothing.safetensors"),
        ("folder", CheckpointError, "has none of model.safetensors"),
        ("bad.index.json", CheckpointError, "no weight_map"),
        ("out.index.json", CheckpointError, r"names '\.\./w\.safetensors'; expected files beside it"),
    ]:
        with pytest.raises(error, match=message):
            load_weights(net(), tmp_path / name)
    assert not (tmp_path / "ran").exists()
    fresh = net()
    load_weights(fresh, {"file": tmp_path / "unusual.pt", "entry": "net"})
    assert same(fresh, trained)
    with pytest.raises(CheckpointError, match="no state dict 'ema' but net"):
        load_weights(fresh, {"file": tmp_path / "unusual.pt", "entry": "ema"})


def test_a_damaged_file_is_no_whole_model(trained, net, tmp_path) -> None:
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    data = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedError, match=r"w\.pt is damaged, or no file of torch\.save"):
        load_weights(net(), tmp_path / "w.pt")


def test_a_map_with_a_key_that_there_is_not_is_refused() -> None:
    with pytest.raises(CheckpointError, match="got the key 'prefx'"):
        WeightsFile.of({"file": "w.pt", "prefx": "module."})
    with pytest.raises(CheckpointError, match="got no file"):
        WeightsFile.of({"prefix": "module."})
    assert WeightsFile.of("w.pt").model_dump(mode="json") == "w.pt"
    assert WeightsFile.of({"file": "w.pt", "skip": ["fc"]}).model_dump(mode="json") == {"file": "w.pt", "skip": ["fc"]}
