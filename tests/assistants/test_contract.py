"""A student's contract: everything that differs is named, and checking changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdx.assistants.contract import Contract
from kdx.errors import CaptureError, ContractError

X = torch.zeros(2, 1, 8, 8)


def test_a_model_keeps_the_contract_that_was_read_off_it(net) -> None:
    contract = Contract.of(net(), X, ["conv", "pool"])
    assert contract == Contract((1, 8, 8), (3,), {"conv": (4, 8, 8), "pool": (4, 1, 1)})
    contract.check(net(), X)
    contract.check(net(), torch.randn(7, 1, 8, 8))


def test_everything_that_differs_is_named_at_once(net) -> None:
    contract = Contract.of(net(), X, ["conv", "norm"])
    other = net(width=6, classes=5)
    del other.norm
    with pytest.raises(ContractError) as caught:
        contract.check(other, X)
    message = str(caught.value)
    assert "tap 'norm' is missing" in message
    assert "outputs of one sample are (5,), agreed (3,)" in message
    assert "tap 'conv' of one sample is (6, 8, 8), agreed (4, 8, 8)" in message


def test_other_inputs_are_named(net) -> None:
    contract = Contract.of(net(), X)
    with pytest.raises(ContractError, match=r"inputs of one sample are \(3, 8, 8\), agreed \(1, 8, 8\)"):
        contract.check(net(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(ContractError, match=r"it does not take the agreed inputs \(1, 8, 8\) \(RuntimeError"):
        contract.check(nn.Conv2d(3, 4, 3), X)


def test_a_model_that_merges_samples_is_named() -> None:
    class Mean(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3].mean(0, keepdim=True)

    with pytest.raises(ContractError, match="2 samples give 1 outputs"):
        Contract((1, 8, 8), (3,)).check(Mean(), X)


def test_a_tap_may_be_agreed_on_without_its_shape(net) -> None:
    contract = Contract((1, 8, 8), (3,), {"conv": None})
    contract.check(net(width=9), X)
    with pytest.raises(ContractError, match="tap 'conv' is missing"):
        contract.check(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), X)


def test_checking_changes_neither_modes_nor_statistics_nor_random_state_nor_hooks(net) -> None:
    model = net().train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    Contract.of(model, X, ["conv"]).check(model, X)
    assert all(module.training for module in model.modules())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert torch.get_rng_state().equal(state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_contract_names_modules_one_by_one(net) -> None:
    with pytest.raises(ContractError, match=r"tap 'con\*' stands for|tap '\*' stands for 7 modules"):
        Contract.of(net(), X, ["*"])
    with pytest.raises(CaptureError, match="names no module"):
        Contract.of(net(), X, ["conf"])
