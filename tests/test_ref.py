"""A component by name: a value that is built from what a recipe writes, and dumps back to it."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel, ValidationError

import kdx
from kdx.errors import KdxError
from kdx.ref import Ref
from kdx.schemes.weights import Cosine
from kdx.stage import Term
from kdx.training.optim import make_optimizer, make_schedule

WRITTEN = {"name": "mlp", "hidden": [8, 4]}


@pytest.mark.parametrize("value", [WRITTEN, Ref("mlp", hidden=(8, 4)), Ref.of(WRITTEN)], ids=["mapping", "ref", "of"])
def test_a_reference_is_built_from_a_mapping_and_dumps_back_to_it(value) -> None:
    ref = Ref.of(value)
    assert ref.as_dict() == WRITTEN
    assert (ref.name, ref.options) == ("mlp", {"hidden": [8, 4]})
    assert eval(repr(ref), {"Ref": Ref}) == ref  # the text is how one writes it
    assert Ref.of("mlp") == Ref("mlp") != ref


def test_references_are_equal_by_value_and_hashable() -> None:
    nested = Ref("residual-sum", student=Ref("mlp", hidden=[8]), weights=Path("a") / "b")
    same = Ref.of({"name": "residual-sum", "student": {"name": "mlp", "hidden": (8,)}, "weights": "a/b"})
    assert nested == same
    assert len({nested, same, Ref("mlp")}) == 2
    assert Ref("mlp") != "mlp"
    assert Ref("soft-targets") != Term("soft-targets")
    for copied in (copy.deepcopy(nested), pickle.loads(pickle.dumps(nested))):
        assert copied == nested
        assert hash(copied) == hash(nested)


def test_a_reference_never_changes() -> None:
    given = {"hidden": [8]}
    ref = Ref("mlp", **given)
    given["hidden"].append(4)
    ref.options["hidden"].append(4)
    ref.as_dict()["hidden"].append(4)
    assert ref.options == {"hidden": [8]}
    with pytest.raises(AttributeError):
        ref.name = "convnet"
    assert ref.with_options(hidden=[2], bias=False).as_dict() == {"name": "mlp", "hidden": [2], "bias": False}
    assert ref.options == {"hidden": [8]}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Ref(3), TypeError, "a component is named by a string, got 3"),
        (lambda: Ref("mlp", **{"name": "x"}), ValueError, "'mlp' cannot have an option 'name'"),
        (lambda: Ref.of(["mlp"]), TypeError, r"expected a name, or \{name: \.\.\., option: value\}, got \['mlp'\]"),
        (lambda: Ref.of({"width": 8}), ValueError, r"expected \{name: .*got \{'width': 8\}"),
        (lambda: Term("logits", weight="heavy"), ValueError, "weight|heavy"),
    ],
)
def test_what_is_no_reference_is_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


class Section(BaseModel):
    model: Ref
    term: Term = Term("logits")


def test_a_section_validates_to_references_and_dumps_mappings() -> None:
    weight = {"kind": "cosine", "start": 0.5}
    section = Section.model_validate({"model": WRITTEN, "term": {"name": "dkd", "weight": weight, "beta": 2}})
    assert section.model == Ref("mlp", hidden=[8, 4])
    assert section.term == Term("dkd", weight=Cosine(0.5), beta=2)
    assert (section.term.options, section.term.weight) == ({"beta": 2}, Cosine(0.5))
    dumped = section.model_dump(mode="json")
    assert dumped["model"] == WRITTEN
    assert dumped["term"] == {"name": "dkd", "weight": {"kind": "cosine", "start": 0.5, "to": 0.0}, "beta": 2}
    assert Section.model_validate(dumped) == Section.model_validate(section.model_dump()) == section
    assert Section.model_validate({"model": "mlp"}).model == Ref("mlp")
    assert Section(model=Ref("mlp")).term.weight == 1.0
    for wrong, place in (
        ({"model": {}}, "model.name"),
        ({"model": "a", "term": {"name": "x", "weight": []}}, "weight"),
    ):
        with pytest.raises(ValidationError, match=place):
            Section.model_validate(wrong)


def test_components_optimizers_and_schedules_are_made_from_references() -> None:
    net = kdx.make("model", Ref("mlp", hidden=[3]), num_classes=2, input_shape=(1, 2, 2))
    assert net.hidden1[0].out_features == 3
    written = {"name": "SGD", "lr": 0.5}
    for spec in (written, Ref.of(written)):
        optimizer = make_optimizer(spec, net.parameters())
        assert isinstance(optimizer, torch.optim.SGD)
        assert optimizer.param_groups[0]["lr"] == 0.5
    schedule = make_schedule(Ref("StepLR", step_size=1, every="epoch"), optimizer, steps=4, epochs=2)
    assert schedule is not None
    assert schedule.every == "epoch"
    with pytest.raises(KdxError, match="torch has no optimizer named 'SDG'; did you mean 'SGD'"):
        make_optimizer(Ref("SDG"), net.parameters())
