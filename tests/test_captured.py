"""Captured answers that are not held as tensors."""

from __future__ import annotations

import pytest
import torch

from kdx import Captured, LinearLogits
from kdx.errors import CaptureError
from kdx.ops import SparseTargets


def held() -> LinearLogits:
    return LinearLogits(torch.randn(3, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True))


def test_response_gives_what_is_held_and_else_the_tensor() -> None:
    logits, value = held(), torch.zeros(2)
    captured = Captured({"norm": value}, held={"logits": logits})
    assert captured.response("logits") is logits
    assert captured.response("norm") is value
    assert "logits" not in captured


def test_logits_asked_of_hidden_states_and_a_head_say_what_to_do() -> None:
    captured = Captured({}, held={"logits": held()})
    for ask in (lambda: captured["logits"], lambda: captured.logits, lambda: captured.select("logits")):
        with pytest.raises(CaptureError, match=r"'logits' was asked for.*\[3, 7\] are never made.*leave kdx\.Head out"):
            ask()


def test_a_tensor_beside_what_is_held_is_made_once_and_when_asked_for() -> None:
    made = []

    def dense() -> torch.Tensor:
        made.append(1)
        return torch.zeros(2, 5)

    targets = SparseTargets(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1))
    captured = Captured({}, held={"logits": targets}, later={"logits": dense})
    assert captured.response("logits") is targets
    assert made == []
    assert captured.logits is captured.logits
    assert made == [1]


def test_sparse_targets_without_a_way_to_spread_them_say_so() -> None:
    targets = SparseTargets(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1))
    with pytest.raises(CaptureError, match=r"held as SparseTargets without a way to make it.*response"):
        Captured({}, held={"logits": targets})["logits"]


def test_having_keeps_what_is_held_and_drops_it_where_a_tensor_takes_its_place() -> None:
    logits = held()
    captured = Captured({"norm": torch.zeros(2)}, held={"logits": logits})
    assert captured.having({"norm": torch.ones(2)}).response("logits") is logits
    other = torch.ones(3, 7)
    assert captured.having({"logits": other}).response("logits") is other


def test_having_and_detach_carry_tensors_that_are_made_later() -> None:
    weight = torch.ones(5, requires_grad=True)
    narrow = torch.zeros(5, dtype=torch.bfloat16)
    captured = Captured({}, held={"logits": narrow}, later={"logits": lambda: 2 * weight})
    assert captured.having({}).logits.requires_grad
    found = captured.detach()
    assert not found.logits.requires_grad
    assert found.response("logits").dtype == torch.bfloat16
    captured["logits"]  # made before
    assert captured.detach().response("logits").dtype == torch.bfloat16
    assert not captured.detach().logits.requires_grad


def test_detach_lets_go_of_the_graph_of_what_is_held() -> None:
    found = Captured({}, held={"logits": held()}).detach().response("logits")
    assert not found.hidden.requires_grad
    assert not found.weight.requires_grad
