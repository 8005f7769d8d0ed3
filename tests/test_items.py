"""Items of nested results, by their path."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import kdx
from kdx.errors import CaptureError
from kdx.items import item_of
from kdx.schemes import KDCL
from kdx.training import evaluate


@dataclass
class Found:
    depth: torch.Tensor


class Nested(nn.Module):
    """A detector of sorts: its head gives a list of maps beside a map, its output all of them."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(x), [x + 1, {"0": x + 2, "deep": x + 3}]

    def __init__(self) -> None:
        super().__init__()
        self.detect = self.Head()

    def forward(self, x):
        scores, others = self.detect(x)
        return [others, {"scores": (None, scores)}, Found(x)]


def test_taps_go_into_nested_items_and_quoted_digits_are_keys() -> None:
    model, x = Nested(), torch.randn(4, 3)
    names = ["detect[1][0]", "detect[1][1]['0']", "detect[1][1][deep]", "logits[2][depth]", "logits[0][0]"]
    captured = kdx.Taps(model, names, output="[1][scores][1]")(x)
    for name, wanted in zip(names, (x + 1, x + 2, x + 3, x, x + 1), strict=True):
        assert captured[name].equal(wanted)
    assert captured.logits.equal(model.detect.fc(x))


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("detect[1][2]", r"tap 'detect\[1\]\[2\]': the module gave list without item 2"),
        ("detect[1][1][0]", r"dict with keys \['0', 'deep'\] without item 0"),
        ("logits[2][width]", "Found without item 'width'"),
        ("detect[1]", r"gave list, not a tensor"),
    ],
)
def test_an_item_that_there_is_not_is_named(tap: str, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        kdx.Taps(Nested(), [tap], output="[1][scores][1]")(torch.randn(4, 3))


def test_an_output_that_is_no_path_is_refused() -> None:
    with pytest.raises(ValueError, match=r"output: expected the path of an item, .* got 'scores'"):
        kdx.Taps(Nested(), output="scores")


def test_an_item_of_a_tuple_of_tuples() -> None:
    assert item_of(((1, 2), (3, [4])), "[1][1][0]") == 4


@pytest.mark.parametrize("scheme", [kdx.Mutual, KDCL])
def test_every_peer_may_have_an_output_of_its_own(scheme) -> None:
    peers = [Nested(), nn.Linear(3, 2)]
    options = {"views": lambda inputs, peer: inputs} if scheme is KDCL else {"knowledge": {"kd": kdx.SoftTargets(1.0)}}
    made = scheme(peers, peer_outputs=["[1][scores][1]", None], **options)
    x, y = torch.randn(6, 3), torch.randint(2, (6,))
    assert made((x, y)).total.isfinite()
    assert made.output_of("peer1") is None
    found = evaluate(peers[0], [(x, y)], output=made.output_of("peer0"))
    assert found["accuracy"] == pytest.approx((peers[0].detect.fc(x).argmax(1) == y).double().mean().item())
    with pytest.raises(ValueError, match="peer_outputs must have one for each of the 2 peers, got 1"):
        scheme(peers, peer_outputs=[None], **options)


def test_a_path_reads_no_private_attribute() -> None:
    for path in ("[depth][__class__]", "[__init__][__globals__][os]", "[__dict__]", "[_private]"):
        with pytest.raises(KeyError):
            item_of(Found(torch.zeros(1)), path)
