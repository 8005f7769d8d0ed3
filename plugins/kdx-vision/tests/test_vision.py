"""Models and data sets of timm and torchvision where they are installed, and their stand-ins where they are not."""

import os
import sys
import types
from pathlib import Path

import pytest
import torch
from kdx_vision.models import collection, timm_model, torchvision_model
from kdx_vision.torchvision_set import TorchvisionSet
from safetensors.torch import save_file


class FakeTimm(types.ModuleType):
    """As much of timm as is called."""

    def __init__(self) -> None:
        super().__init__("timm")
        self.calls = []

    def list_models(self, pattern=None):
        return (
            ["net18", "vit_small"]
            if pattern is None
            else [m for m in ("net18", "vit_small") if pattern.strip("*") in m]
        )

    def create_model(self, name, **options):
        if name == "net18" and "img_size" in options:
            raise TypeError("unexpected keyword argument 'img_size'")
        self.calls.append((name, options))
        return torch.nn.Linear(1, 1)


def test_timm_models_are_fitted_to_the_data(monkeypatch) -> None:
    fake = FakeTimm()
    monkeypatch.setitem(sys.modules, "timm", fake)
    timm_model("net18", num_classes=7, input_shape=(1, 28, 28))
    timm_model("vit_small", num_classes=7, input_shape=(1, 28, 28))
    (_, plain), (_, sized) = fake.calls
    assert plain == {"num_classes": 7, "in_chans": 1, "drop_rate": 0.0}
    assert sized == plain | {"img_size": (28, 28)}
    with pytest.raises(ValueError, match=r"timm has none named 'net'; it has net18"):
        timm_model("net")


class Attack:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_weights_of_timm_models_are_read_and_nothing_in_them_is_run(monkeypatch, tmp_path) -> None:
    fake = FakeTimm()
    monkeypatch.setitem(sys.modules, "timm", fake)
    state = {"weight": torch.tensor([[2.0]]), "bias": torch.tensor([3.0])}
    save_file(state, tmp_path / "plain.safetensors")
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": state[key] for key in state}}, tmp_path / "run.pth.tar")
    run = {"file": tmp_path / "run.pth.tar", "prefix": "module."}
    for weights in (tmp_path / "plain.safetensors", tmp_path / "plain.pth", run):
        loaded = timm_model("net18", weights=weights).state_dict()
        assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert all("checkpoint_path" not in options for _, options in fake.calls)
    with pytest.raises(ValueError, match=r"net18: .* Write weights: \{file: .*run\.pth\.tar, prefix: module\.\}"):
        timm_model("net18", weights=tmp_path / "run.pth.tar")
    torch.save({"weight": Attack(tmp_path / "ran")}, tmp_path / "bad.pth")
    torch.save([1], tmp_path / "list.pth")
    torch.save({"weight": state["weight"]}, tmp_path / "part.pth")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("bad.pth", "list.pth", "part.pth", "empty.pth", "text.safetensors"):
        with pytest.raises(ValueError, match=f"weights of net18: .*{name}"):
            timm_model("net18", weights=tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["sys", "make_dataset", "__name__", "utils", "Other"])
def test_the_data_sets_of_torchvision_are_data_sets(name: str, monkeypatch) -> None:
    fake = types.ModuleType("torchvision")
    fake.datasets = types.SimpleNamespace(sys=sys, make_dataset=print, __name__="x", utils=os, Other=FakeTimm)
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    with pytest.raises(ValueError, match=rf"torchvision\.datasets has none named '{name}'"):
        TorchvisionSet("train", dataset=name, root="data")


def installed(name: str) -> bool:
    try:
        __import__(name)
    except (ImportError, RuntimeError):  # a torchvision beside another torch raises RuntimeError
        return False
    return True


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("timm", lambda: timm_model("resnet18")),
        ("torchvision", lambda: torchvision_model("resnet18")),
        ("torchvision", lambda: TorchvisionSet("train", dataset="CIFAR10", root="data")),
    ],
    ids=["timm model", "torchvision model", "torchvision data set"],
)
def test_without_the_collection_the_error_says_what_to_install(name, use, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError):
        use()
    monkeypatch.delitem(sys.modules, name)
    if not installed(name):
        with pytest.raises(ImportError, match=f"{name}"):
            collection(name)


@pytest.mark.parametrize(
    "code", ["raise RuntimeError('operator torchvision::nms does not exist')", "import no_such_module_at_all"]
)
def test_a_collection_that_is_there_and_does_not_import_says_so(code: str, tmp_path, monkeypatch) -> None:
    (tmp_path / "timm.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(ImportError, match=r"timm is installed but does not import: .*(nms|no_such).*; releases of"):
        timm_model("resnet18")


@pytest.mark.skipif(not installed("timm"), reason="timm is not installed")
def test_a_timm_model_is_an_ordinary_model() -> None:
    assert timm_model("resnet10t", num_classes=5, input_shape=(1, 32, 32))(torch.zeros(2, 1, 32, 32)).shape == (2, 5)


@pytest.mark.skipif(not installed("torchvision"), reason="torchvision is not installed")
def test_a_torchvision_model_takes_colour_only() -> None:
    assert torchvision_model("resnet18", num_classes=5)(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    with pytest.raises(ValueError, match="three channels, the data have 1"):
        torchvision_model("resnet18", input_shape=(1, 28, 28))
