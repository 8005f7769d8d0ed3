"""Promises of every self-distillation scheme: it trains, resumes exactly, exports the student alone, shares nothing."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

import kdx
from kdx.datasets import SameClassPairs, View
from kdx.errors import Interrupted
from kdx.models import ConvNet
from kdx.options import options_of
from tests.stopping import Stop

# name -> options, and the layer that a component in place of the default knowledge reads
SCHEMES: dict[str, tuple[dict[str, Any], str]] = {
    "byot": ({}, "feature"),
    "sad": ({"start": 0.4}, "feature"),
    "ps-kd": ({}, "stage2"),
    "cs-kd": ({}, "stage2"),
    "snapshot-distillation": ({"cycle": 1}, "stage2"),
    "ema-teacher": ({"decay": 0.9}, "stage2"),
}
every_scheme = pytest.mark.parametrize("name", SCHEMES)


def student() -> ConvNet:
    return ConvNet(width=4, stages=3, num_classes=3, input_shape=(1, 8, 8))


def make(name: str, *, knowledge: bool = False, seed: int = 0) -> kdx.Scheme:
    torch.manual_seed(seed)
    options, layer = SCHEMES[name]
    terms = {"own": (0.5, kdx.Hint(student=layer, teacher=layer))} if knowledge else None
    return kdx.make("scheme", name, student(), knowledge=terms, **options)


def loader(name: str, images) -> DataLoader:
    view = View(TensorDataset(*images))
    if name == "cs-kd":
        return DataLoader(view, batch_sampler=SameClassPairs(images[1], 16))
    return DataLoader(view, 16, shuffle=True)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two states are equal in every bit, tensors and extra state."""
    assert first.keys() == second.keys()
    for key, value in first.items():
        equal = value.equal(second[key]) if isinstance(value, torch.Tensor) else value == second[key]
        assert equal, key
    return True


@every_scheme
@pytest.mark.parametrize("knowledge", [False, True], ids=["default", "own knowledge"])
def test_a_run_stopped_anywhere_ends_bitwise_where_the_unbroken_one_ends(name, knowledge, images, tmp_path) -> None:
    def run(folder: Path, **options) -> tuple[kdx.Scheme, Any]:
        scheme = make(name, knowledge=knowledge)
        data = loader(name, images)
        done = kdx.fit(scheme, data, epochs=3, evaluate=data, seed=5, device="cpu", folder=folder, **options)
        return scheme, done

    unbroken, whole = run(tmp_path / "unbroken")
    for stop in (3, 9, 12):  # amid the first and the second epoch, and at the end of the second
        torch.manual_seed(stop)
        with pytest.raises(Interrupted):
            run(tmp_path / "broken", resume=True, observers=[Stop(stop)])
    torch.manual_seed(99)
    resumed, rest = run(tmp_path / "broken", resume=True)
    assert rest.history == whole.history
    assert same(unbroken.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("name", ["sad", "ps-kd", "ema-teacher", "snapshot-distillation"])
def test_accumulating_micro_batches_changes_nothing(name, images) -> None:
    def train(batch_size: int, accumulate: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        plain = ConvNet(width=4, stages=3, norm=False, num_classes=3, input_shape=(1, 8, 8))
        scheme = kdx.make("scheme", name, plain, **SCHEMES[name][0])
        data = DataLoader(View(TensorDataset(*images)), batch_size)
        kdx.fit(scheme, data, epochs=3, accumulate=accumulate, optimizer={"name": "SGD", "lr": 0.1}, device="cpu")
        return dict(plain.state_dict())

    whole, parts = train(48, 1), train(12, 4)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-6, msg=key)


@every_scheme
def test_twenty_steps_lower_the_loss(name, images) -> None:
    scheme = make(name)
    data = loader(name, images)

    def task() -> float:
        with torch.no_grad():
            return sum(scheme(batch).terms["task"].item() for batch in data)

    scheme.dataset_size(len(images[0]))
    scheme.setup(next(iter(data)))
    scheme.eval()
    before = task()
    kdx.fit(scheme, data, steps=20, optimizer={"name": "AdamW", "lr": 0.01}, schedule=None, device="cpu")
    scheme.eval()
    scheme.epoch_start(0, 1)
    after = task()
    assert after < 0.8 * before


@every_scheme
def test_the_exported_student_is_the_plain_model_and_answers_alike(name, images, tmp_path) -> None:
    scheme = make(name)
    kdx.fit(scheme, loader(name, images), epochs=2, device="cpu", folder=tmp_path)
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {"student.safetensors"}
    plain = student()
    plain.load_state_dict(load_file(tmp_path / "student.safetensors"))  # strict: the same names
    inside = scheme.students["student"].eval()
    assert plain.eval()(images[0]).equal(inside(images[0]))


@every_scheme
def test_two_instances_share_no_state_and_copies_pickle(name, images) -> None:
    data = loader(name, images)
    first, second = make(name), make(name)
    kdx.fit(first, data, epochs=1, device="cpu")
    assert same(second.state_dict(), make(name).state_dict())
    batch = next(iter(data))
    first.eval()
    for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert other(batch).total.equal(first(batch).total)
        other.train()
        other(batch)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1.0)
        assert not torch.isclose(other.eval()(batch).total, first(batch).total)
    mine, others = (
        {value.data_ptr() for value in scheme.state_dict().values() if isinstance(value, torch.Tensor)}
        for scheme in (first, other)
    )
    assert not mine & others


@every_scheme
@pytest.mark.filterwarnings("ignore:.*:UserWarning:torch")
def test_the_scheme_compiles(name, images) -> None:
    scheme = make(name)
    scheme.dataset_size(len(images[0]))
    batch = next(iter(loader(name, images)))
    scheme.setup(batch)
    scheme.eval()
    expected = scheme(batch).total
    compiled = torch.compile(scheme, backend="aot_eager", fullgraph=True)(batch).total
    torch.testing.assert_close(compiled, expected)


def every_component(layer: str) -> dict[str, kdx.Knowledge]:
    """One of each kind of knowledge, on logits where it can be, else on ``layer``."""
    plugins, made = kdx.plugins(), {}
    for name in plugins.components("knowledge"):
        if name in ("sigmoid-targets", "gaussian-kl", "attention-scores", "minilm", "ab", "ft", "alm", "uld"):
            # outputs are classes of images, layers no attention and behind a ReLU, the teacher has no paraphraser
            continue
        options: dict[str, Any] = {}
        for option in options_of(plugins.load("knowledge", name)):
            if (option.required or name == "cwd") and option.name in ("student", "teacher"):
                options[option.name] = (layer, layer) if name == "fsp" else layer
        made[name] = kdx.make("knowledge", name, **options, **({"negatives": 8} if name == "crd" else {}))
    return made


@every_scheme
def test_it_takes_every_kind_of_knowledge(name, images) -> None:
    layer = SCHEMES[name][1]
    components = every_component(layer)
    del components["simkd"]  # belongs to the scheme simkd, which builds the projector that it taps
    if name == "sad":  # stages have no logits
        components = {
            k: part for k, part in components.items() if part.student_taps[0] == part.teacher_taps[0] == layer
        }
    torch.manual_seed(0)
    scheme = kdx.make("scheme", name, student(), knowledge=components, **SCHEMES[name][0])
    batch = next(iter(loader(name, images)))
    scheme.dataset_size(len(images[0]))
    scheme.setup(batch)
    for epoch in range(3):
        scheme.epoch_start(epoch, 3)
        losses = scheme(batch)
    losses.total.backward()
    found = {term.rpartition("/")[2] for term in losses.terms}
    assert found == {"task", *components}
    assert all(term.isfinite() for term in losses.terms.values())
    assert all(parameter.grad.isfinite().all() for parameter in scheme.parameters() if parameter.grad is not None)
