"""Taps with options, and what they may say."""

from __future__ import annotations

import copy
import pickle

import pytest

import kdx
from kdx.layout import Layout, UnknownLayout, layout_from_json, layout_to_json
from kdx.tap import Tap, Told


@pytest.mark.parametrize("way", [copy.deepcopy, copy.copy, lambda tap: pickle.loads(pickle.dumps(tap))])
def test_a_tap_is_its_name_and_keeps_its_options(way):
    tap = way(kdx.Tap("blocks.3", layout="nlc", grid=[9, 16], class_token=1, registers=4))
    assert tap == "blocks.3"
    assert {tap: 1}["blocks.3"] == 1
    assert tap.told == Told("nlc", (9, 16), 1, 4)
    assert repr(tap) == "Tap('blocks.3', layout='nlc', grid=(9, 16), class_token=1, registers=4)"


def test_a_recipe_writes_a_tap_as_a_mapping():
    assert Tap.of({"tap": "a", "grid": [2, 3]}).told == Told(grid=(2, 3))
    assert Tap.of("a").told == Told()
    with pytest.raises(ValueError, match=r"whose keys are tap, layout, .*; got the key 'gird'"):
        Tap.of({"tap": "a", "gird": [2, 3]})
    with pytest.raises(ValueError, match="got no name"):
        Tap.of({"layout": "nlc"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "nhcw"}, "layout: there is no 'nhcw'; did you mean 'nhwc'"),
        ({"grid": 14}, "grid: expected one to three positive numbers, as \\(9, 16\\)"),
        ({"grid": (0, 4)}, "grid: expected"),
        ({"grid": (1, 2, 3, 4)}, "grid: expected"),
        ({"class_token": True}, "class_token: expected a number of tokens, 0 or more, got True"),
        ({"registers": -1}, "registers: expected"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        kdx.Tap("a", **options)
    with pytest.raises(ValueError, match=message):
        Layout(**{"axes": "nlc"} | {name.replace("layout", "axes"): value for name, value in options.items()})


def test_a_grid_is_of_tokens():
    with pytest.raises(ValueError, match="are about tokens, 'nlc' or 'lnc', not about 'nchw'"):
        Layout("nchw", grid=(2, 2))


@pytest.mark.parametrize("layout", [Layout("nhwc"), Layout("lnc", (9, 16), 1, 4), UnknownLayout("Block", False)])
def test_a_layout_goes_through_a_file(layout):
    assert layout_from_json(layout_to_json(layout)) == layout
