"""Frozen teachers with a dtype or a device of their own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import kdx
from kdx.batch import Batch
from kdx.teachers import Frozen


def test_a_dtype_of_its_own_leaves_the_given_model_alone(net, batch) -> None:
    model = net(4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    teacher = Frozen(model, dtype=torch.bfloat16)
    assert teacher.model is not model
    assert model.training
    assert all(
        value.equal(before[name]) and value.dtype == before[name].dtype for name, value in model.state_dict().items()
    )
    reference = copy.deepcopy(model).to(torch.bfloat16).eval()
    logits = teacher(batch).logits
    assert logits.dtype == torch.float32
    assert logits.equal(reference(batch.inputs.bfloat16()).float())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert teacher(batch).logits.equal(logits)  # no memory is shared


def test_without_a_policy_it_is_the_model_itself(net) -> None:
    model = net(4)
    assert Frozen(model).model is model
    assert not model.training


def test_the_owner_changes_neither_its_dtype_nor_its_device(net, batch) -> None:
    scheme = kdx.Offline(net(4), Frozen(net(6), dtype=torch.bfloat16), knowledge={"kd": kdx.SoftTargets()}).double()
    assert scheme.student.fc.weight.dtype == torch.float64
    assert scheme.teacher.model.fc.weight.dtype == torch.bfloat16
    doubled = Batch(batch.inputs.double(), batch.targets)
    assert scheme.teacher(doubled).logits.dtype == torch.float64
    scheme(doubled).total.backward()

    held = Frozen(net(6), device="cpu")
    held.to("meta")  # a device that is there on every machine
    assert held.model.fc.weight.device.type == "cpu"
    assert Frozen(net(6)).to("meta").model.fc.weight.device.type == "meta"


def test_an_offloaded_teacher_takes_the_batch_to_its_device_and_brings_the_answer_back(net, batch) -> None:
    teacher = Frozen(net(4), device="meta")  # a second device that every machine has
    seen = []
    teacher.model.register_forward_hook(lambda _module, inputs, output: seen.extend([*inputs, output]))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # the way back, which meta lacks
        teacher(batch)
    assert [tensor.device.type for tensor in seen] == ["meta", "meta"]
    here = Frozen(net(4), device="cpu")
    assert here(batch).logits.device == batch.inputs.device


def test_autocast_does_not_change_its_dtype(net, batch) -> None:
    teacher = Frozen(net(4), dtype=torch.float32)
    expected = teacher(batch).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert teacher(batch).logits.equal(expected)


def test_tied_weights_stay_tied_and_copies_pickle(batch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64))
    model[2].weight = model[1].weight
    teacher = Frozen(model, dtype=torch.bfloat16)
    assert teacher.model[2].weight is teacher.model[1].weight
    for other in (copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher))):
        assert other(batch).logits.equal(teacher(batch).logits)


def test_token_ids_stay_integers_and_the_answer_is_single_precision() -> None:
    teacher = Frozen(nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3)), dtype=torch.bfloat16)
    assert teacher(Batch(torch.tensor([[1, 2], [3, 4]]))).logits.dtype == torch.float32
    with pytest.raises(TypeError, match=r"dtype must be a floating dtype, such as torch.bfloat16; got torch.int64"):
        Frozen(nn.Linear(2, 2), dtype=torch.int64)
