"""Promises of every scheme of several learners: it trains, resumes exactly, exports what it says, shares nothing."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

import kdx
from kdx.datasets import View
from kdx.errors import Interrupted
from kdx.models import ConvNet
from kdx.registry import Plugins
from tests.stopping import Stop

LAYERS = {"student": "stage2", "teacher": "stage2"}
PAIRS = {"student": ("stage2", "stage3"), "teacher": ("stage2", "stage3")}
EMBEDDING = {"student": "avgpool", "teacher": "avgpool"}
COMPONENTS: dict[str, dict[str, Any]] = {
    "logit-standardisation": {"around": kdx.SoftTargets(2.0)},
    "rkd": EMBEDDING,
    "sp": LAYERS,
    "pkt": EMBEDDING,
    "cc": EMBEDDING,
    "irg": PAIRS | {"transform": "edge"},
    "fsp": PAIRS,
    "hint": LAYERS,
    "attention-transfer": LAYERS,
    "nst": LAYERS,
    "ab": {"student": "stage2.norm1", "teacher": "stage2.norm1"},
    "ofa": {"student": ("stage2", "stage3")},
    "cwd": LAYERS,
    "hidden-states": LAYERS,
    "cosine": LAYERS,
    "vid": LAYERS,
    "ofd": LAYERS,
    "review-kd": PAIRS,
    "crd": EMBEDDING | {"negatives": 8},
    "semckd": PAIRS,
}
"""Options of the components that need some."""
OWN = Plugins(entries=(), blocked=(), trace=False).components("knowledge").keys() - {
    "simkd",  # which has its own scheme
    "ft",  # whose teacher has a paraphraser
    "attention-scores",  # which compares attention, as minilm does
    "minilm",
    "alm",  # which read texts in two tokenisations
    "uld",
}


FORMS = {"gaussian-kl": 4, "sigmoid-targets": 3}
"""Components that compare no logits of classes -> width of the outputs that they are tried on."""


def of_any_form(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A loss that does not say what the outputs are, so that they may be of any form."""
    return torch.nn.functional.cross_entropy(outputs, targets)


def model(width: int = 4, classes: int = 3) -> ConvNet:
    return ConvNet(width=width, stages=3, num_classes=classes, input_shape=(1, 8, 8))


Terms = dict[str, Any] | None
SCHEMES: dict[str, Callable[..., kdx.Scheme]] = {
    "online": lambda terms, classes=3, **task: kdx.make(
        "scheme", "online", model(4, classes), model(6, classes), knowledge=terms or kd(), **task
    ),
    "mutual": lambda terms, classes=3, **task: kdx.Mutual(
        [model(4, classes), model(6, classes)], knowledge=terms or kd(), **task
    ),
    "mutual in turn": lambda terms, classes=3, **task: kdx.Mutual(
        [model(4, classes), model(6, classes)], knowledge=terms or kd(), **task, updates="alternating"
    ),
    "one": lambda terms, classes=3, **task: kdx.make(
        "scheme", "one", model(4, classes), split="stage1", branches=2, knowledge=terms, **task
    ),
    "one, ensemble": lambda terms, classes=3, **task: kdx.make(
        "scheme", "one", model(4, classes), split="stage1", branches=2, knowledge=terms, **task, export="ensemble"
    ),
    "kdcl": lambda terms, classes=3, **task: kdx.make(
        "scheme", "kdcl", [model(4, classes), model(6, classes)], knowledge=terms, **task, shift=1
    ),
    "multi-teacher": lambda terms, classes=3, **task: kdx.make(
        "scheme",
        "multi-teacher",
        model(4, classes),
        {"a": model(6, classes), "b": model(4, classes)},
        knowledge=terms or kd(),
        **task,
    ),
}
STUDENTS = {
    "online": ["student", "teacher"],
    "mutual": ["peer0", "peer1"],
    "mutual in turn": ["peer0", "peer1"],
    "one": ["student"],
    "one, ensemble": ["ensemble"],
    "kdcl": ["peer0", "peer1"],
    "multi-teacher": ["student"],
}
every_scheme = pytest.mark.parametrize("name", SCHEMES)
every_training = pytest.mark.parametrize("name", [name for name in SCHEMES if name != "one, ensemble"])  # as "one"


def kd() -> Terms:
    return {"kd": kdx.SoftTargets(2.0)}


def make(name: str, terms: Terms = None, seed: int = 0, **options: Any) -> kdx.Scheme:
    torch.manual_seed(seed)
    return SCHEMES[name](terms, **options)


def losses_of(scheme: kdx.Scheme, batch) -> kdx.Losses:
    """The losses of all phases."""
    return kdx.Losses.joined([scheme(batch, phase.name) for phase in scheme.phases])


@pytest.fixture
def data(images) -> DataLoader:
    return DataLoader(View(TensorDataset(*images)), 16, shuffle=True)


def tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value for key, value in module.state_dict().items() if isinstance(value, torch.Tensor)}


@every_training
def test_a_run_stopped_anywhere_ends_bitwise_where_the_unbroken_one_ends(name, data, tmp_path) -> None:
    def run(folder: Path, **options) -> tuple[kdx.Scheme, Any]:
        layer = {"student": "stage2", "teacher": "b/stage2" if name == "multi-teacher" else "stage2"}
        terms = kd() | {"hint": (0.1, kdx.Hint(**layer))}
        scheme = make(name, terms)
        done = kdx.fit(scheme, data, epochs=2, seed=5, device="cpu", folder=folder, log_every=1, **options)
        return scheme, done

    unbroken, whole = run(tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        run(tmp_path / "broken", observers=[Stop(8)])  # amid the second epoch
    torch.manual_seed(99)
    resumed, rest = run(tmp_path / "broken", resume=True)
    assert rest.step == whole.step
    assert unbroken.state_dict().keys() == resumed.state_dict().keys()
    for key, value in tensors(unbroken).items():
        assert tensors(resumed)[key].equal(value), key


@every_training
def test_twenty_steps_lower_the_task_loss_of_every_learner(name, data) -> None:
    scheme = make(name)
    batch = next(iter(data))
    scheme.setup(batch)

    def tasks() -> dict[str, float]:
        scheme.eval()
        with torch.no_grad():
            terms = losses_of(scheme, batch).terms
        return {key: term.item() for key, term in terms.items() if key.endswith("task")}

    before = tasks()
    kdx.fit(scheme, data, steps=20, optimizer={"name": "AdamW", "lr": 0.01}, schedule=None, device="cpu")
    after = tasks()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert after[key] < 0.9 * value, key


@every_scheme
def test_what_is_exported_is_the_plain_model_and_answers_alike(name, data, images, tmp_path) -> None:
    scheme = make(name)
    kdx.fit(scheme, data, epochs=1, evaluate=data, device="cpu", folder=tmp_path)
    assert list(scheme.students) == STUDENTS[name]
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == STUDENTS[name]
    if name == "one, ensemble":
        plain: torch.nn.Module = copy.deepcopy(scheme.ensemble)
    else:
        plain = model()  # the first student: no gate, no branch, no adapter
    plain.load_state_dict(load_file(tmp_path / f"{STUDENTS[name][0]}.safetensors"))
    inside = scheme.students[STUDENTS[name][0]]
    assert plain.eval()(images[0]).equal(inside.eval()(images[0]))


@every_training
def test_two_instances_share_no_state_and_copies_pickle(name, data) -> None:
    first, second = make(name), make(name)
    kdx.fit(first, data, steps=3, device="cpu")
    untouched = make(name)
    for key, value in tensors(second).items():
        assert value.equal(tensors(untouched)[key]), key
    batch = next(iter(data))
    first.eval()
    for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert losses_of(other, batch).total.equal(losses_of(first, batch).total)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1.0)
        assert not torch.isclose(losses_of(other, batch).total, losses_of(first, batch).total)


@pytest.mark.parametrize("component", sorted(OWN))
def test_every_component_composes_with_every_scheme(component, data) -> None:
    batch = next(iter(data))
    for name in STUDENTS.keys() - {"one, ensemble"}:
        options = dict(COMPONENTS.get(component, {}))
        if name == "multi-teacher" and "teacher" in options:
            taps = options["teacher"]
            options["teacher"] = f"a/{taps}" if isinstance(taps, str) else tuple(f"a/{tap}" for tap in taps)
        form = {"task": of_any_form, "classes": FORMS[component]} if component in FORMS else {}
        scheme = make(name, {"own": kdx.make("knowledge", component, **options)}, **form)
        scheme.dataset_size(96)
        scheme.setup(batch)
        scheme.train()
        own = []
        for phase in scheme.phases:
            losses = scheme(batch, phase.name)
            losses.total.backward()
            own += [term for key, term in losses.terms.items() if key.rpartition("/")[2] == "own"]
        assert own, name
        assert all(torch.isfinite(term) for term in own), name
        first = next(iter(scheme.students.values()))
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in first.parameters()), name
