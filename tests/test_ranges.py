"""Numbers that a caller gives: their kind and their range, in every option of every component."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

import kdx
from kdx.knowledge import (
    CRD,
    DIST,
    DKD,
    IRG,
    JSD,
    RKD,
    LogitStandardisation,
    ReverseKL,
    SemCKD,
    SigmoidTargets,
    SoftTargets,
)
from kdx.observers.early_stopping import EarlyStopping
from kdx.ranges import check_number, check_whole
from kdx.schemes.phase import Phase
from kdx.tasks import Embedding, Head, MultiLabel, Regression
from kdx.teachers import EMA, Ensemble, Snapshot

NAN, INF = float("nan"), float("inf")


def test_numbers_of_python_and_numpy_are_numbers() -> None:
    assert [check_number("x", value, least=0) for value in (1, 0.5, np.float32(0.5), np.int64(2))] == [1.0, 0.5, 0.5, 2]
    assert [check_whole("n", value, least=1) for value in (1, np.int64(2))] == [1, 2]


@pytest.mark.parametrize("value", [NAN, INF, -INF, -1, 0])
def test_a_number_out_of_range_says_what_was_expected_and_what_came(value) -> None:
    with pytest.raises(ValueError, match=rf"^x must be > 0 and finite, got {value}; do it$"):
        check_number("x", value, above=0, instead="do it")


@pytest.mark.parametrize("value", [True, "1", None, 1j, [1.0]])
def test_what_is_no_number_is_refused_by_type(value) -> None:
    with pytest.raises(TypeError, match="x must be >= 0 and <= 1, got "):
        check_number("x", value, least=0, most=1)


@pytest.mark.parametrize("value", [True, 1.0, "1", None])
def test_what_is_no_integer_is_refused_by_type(value) -> None:
    with pytest.raises(TypeError, match="n must be an integer >= 1, got "):
        check_whole("n", value, least=1)


@pytest.mark.parametrize("make", [SoftTargets, SigmoidTargets, ReverseKL, JSD, DKD, DIST, LogitStandardisation])
@pytest.mark.parametrize("value", [0, -1.0, NAN, INF, True, "4"])
def test_a_temperature_is_a_finite_number_above_zero(make, value) -> None:
    with pytest.raises((ValueError, TypeError), match="temperature must be > 0 and finite"):
        make(temperature=value)


@pytest.mark.parametrize(
    "make",
    [
        lambda value: DKD(alpha=value),
        lambda value: DKD(beta=value),
        lambda value: DIST(inter_weight=value),
        lambda value: DIST(intra_weight=value),
        lambda value: IRG(vertex_weight=value),
        lambda value: IRG(edge_weight=value),
        lambda value: IRG(transform_weight=value),
        lambda value: RKD(distance_weight=value),
        lambda value: RKD(angle_weight=value),
        lambda value: CRD(student="0", teacher="0", temperature=value),
        lambda value: SemCKD(student="0", teacher="0", temperature=value),
        lambda value: Head("classification", weight=value),
        lambda value: MultiLabel(pos_weight=[1.0, value]),
        lambda value: kdx.Supervised(nn.Linear(1, 2), task=(value, nn.CrossEntropyLoss())),
        lambda value: Regression(delta=value),
        lambda value: Embedding(margin=value),
        lambda value: Embedding(width=value),
        lambda value: EMA(nn.Linear(1, 1), decay=value),
        lambda value: Snapshot(nn.Linear(1, 1), every=value),
        lambda value: EarlyStopping(patience=value),
        lambda value: EarlyStopping(min_delta=value),
        lambda value: Phase("train", dict, (), steps=value),
        lambda value: Ensemble({"a": nn.Linear(1, 2), "b": nn.Linear(1, 2)}, weights={"a": 1.0, "b": value}),
    ],
)
@pytest.mark.parametrize("value", [-1.0, NAN, INF, True])
def test_an_option_that_is_no_number_in_its_range_is_refused(make, value) -> None:
    with pytest.raises((ValueError, TypeError), match="must be"):
        make(value)
