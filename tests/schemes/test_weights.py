"""Weights that change, and the gradients they are set by."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import kdx
from kdx.errors import RecipeError
from kdx.experiment.recipe_files import load_recipe
from kdx.hookspecs import hookimpl
from kdx.observers.metrics_log import read_metrics
from kdx.schemes.weights import Balanced, Cosine, Warmup
from kdx.training.gradients import term_gradients


def distil(net, weight) -> kdx.Offline:
    torch.manual_seed(0)
    return kdx.Offline(net(4), net(6), knowledge={"kd": (weight, kdx.SoftTargets(2.0))})


class Weights:
    def __init__(self) -> None:
        self.seen: list[float] = []

    @hookimpl
    def kdx_step_end(self, run) -> None:
        self.seen.append(float(run.scheme.weight("kd")))


def test_schedules_are_what_their_formula_says() -> None:
    warmup = Warmup(to=2.0, steps=4, start=1.0)
    assert [warmup.at(step, 10) for step in (0, 2, 4, 9)] == [1.0, 1.5, 2.0, 2.0]
    cosine = Cosine(start=1.0, to=0.2)
    assert cosine.at(0, 11) == 1.0
    assert cosine.at(5, 11) == pytest.approx(0.6)
    assert cosine.at(10, 11) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="steps must be an integer >= 1"):
        Warmup(1.0, 0)
    with pytest.raises(ValueError, match="ratio must be > 0 and finite, got 0"):
        Balanced(ratio=0)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), True])
@pytest.mark.parametrize(
    "make",
    [
        lambda value: Warmup(to=value, steps=3),
        lambda value: Warmup(to=1.0, steps=3, start=value),
        lambda value: Cosine(start=value),
        lambda value: Cosine(start=1.0, to=value),
        lambda value: Balanced(ratio=value),
        lambda value: Balanced(every=value),
        lambda value: Balanced(momentum=value),
        lambda value: Balanced(start=value),
    ],
)
def test_a_schedule_of_weights_that_are_none_is_refused(make, value) -> None:
    with pytest.raises((ValueError, TypeError), match=f"(to|start|ratio|every|momentum) must be .* got {value}"):
        make(value)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), True, "1"])
def test_a_weight_that_is_none_is_refused_by_the_name_of_its_term(net, value) -> None:
    with pytest.raises(
        (ValueError, TypeError), match=f"weight of knowledge 'kd' must be >= 0 and finite, got .?{value}"
    ):
        distil(net, value)


class Falling:
    """A schedule of one's own that falls below 0."""

    def at(self, step: int, total: int) -> float:
        return 1.0 - step / 2

    def __repr__(self) -> str:
        return "Falling()"


def test_a_schedule_of_ones_own_that_leaves_the_range_is_named_with_its_step(net, loader) -> None:
    message = r"the weight of knowledge 'kd' in step 4 of 12 must be >= 0 and finite, got -0.5; its schedule is Falling"
    with pytest.raises(ValueError, match=message):
        kdx.fit(distil(net, Falling()), loader, epochs=2)


def test_fit_advances_a_schedule_step_by_step_and_resuming_goes_on_with_it(net, loader, tmp_path) -> None:
    expected = [0.9 * min(step / 8, 1) for step in range(12)]
    whole = Weights()
    kdx.fit(distil(net, Warmup(0.9, 8)), loader, epochs=2, observers=[whole])
    assert whole.seen == pytest.approx(expected)
    part = Weights()

    class Stop:
        @hookimpl
        def kdx_step_end(self, run, step):
            if step == 5:
                raise OSError("stop here")

    with pytest.raises(kdx.KdxError, match="stop here"):
        kdx.fit(distil(net, Warmup(0.9, 8)), loader, epochs=2, folder=tmp_path, observers=[part, Stop()])
    kdx.fit(distil(net, Warmup(0.9, 8)), loader, epochs=2, folder=tmp_path, observers=[part], resume=True)
    assert part.seen == pytest.approx(expected)


def test_the_weight_multiplies_the_term(net, batch) -> None:
    scheme = distil(net, Warmup(2.0, 10)).eval()
    scheme.advance(5, 10)
    constant = distil(net, 1.0).eval()
    torch.testing.assert_close(scheme(batch).terms["kd"], constant(batch).terms["kd"])
    scheme.advance(0, 10)
    assert scheme(batch).terms["kd"].item() == 0


def test_gradients_of_terms_are_their_norms_and_cosines(net, batch) -> None:
    scheme = distil(net, 0.5).eval()
    losses = scheme(batch)
    parameters = list(scheme.student.parameters())
    found = term_gradients(losses, parameters)
    flat = {
        name: torch.cat([g.flatten() for g in torch.autograd.grad(term, parameters, retain_graph=True)])
        for name, term in losses.terms.items()
    }
    for name, (norm, cosine) in found.items():
        torch.testing.assert_close(norm, flat[name].norm())
        torch.testing.assert_close(cosine, torch.cosine_similarity(flat[name], flat["task"], dim=0))
    losses.total.backward()


def test_gradients_are_logged_at_their_pace_and_change_nothing(net, images, tmp_path) -> None:
    def train(**options) -> kdx.Offline:
        scheme = distil(net, 0.5)
        loader = DataLoader(TensorDataset(*images), 16)
        kdx.fit(scheme, loader, epochs=2, seed=1, **options)
        return scheme

    plain, logged = train(), train(log_gradients=5, folder=tmp_path)
    for name, value in plain.state_dict().items():
        assert logged.state_dict()[name].equal(value), name
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "grad/kd/norm" in row]
    assert [row["step"] for row in rows] == [5, 10]
    for row in rows:
        assert row["grad/task/cosine"] == pytest.approx(1.0, abs=1e-5)
        assert -1 <= row["grad/kd/cosine"] <= 1


def test_a_balanced_weight_reaches_its_ratio_and_survives_resuming(net, images, tmp_path) -> None:
    def loader() -> DataLoader:
        return DataLoader(TensorDataset(*images), 96)

    def ratio(scheme: kdx.Offline, batch) -> float:
        found = term_gradients(scheme(batch), scheme.student.parameters())
        return (found["kd"][0] / found["task"][0]).item()

    still = {"name": "SGD", "lr": 1e-30}
    scheme = distil(net, Balanced(ratio=0.3, every=1, momentum=0.5))
    scheme.student.drop.p = 0.0
    kdx.fit(scheme, loader(), epochs=20, optimizer=still, folder=tmp_path)
    assert ratio(scheme, images) == pytest.approx(0.3, rel=1e-3)
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "weight/kd" in row]
    assert len(rows) == 20
    assert rows[-1]["weight/kd"] == pytest.approx(float(scheme.weight("kd")))
    other = distil(net, Balanced(ratio=0.3))
    other.load_state_dict(scheme.state_dict())
    assert float(other.weight("kd")) == float(scheme.weight("kd"))
    lonely = kdx.Offline(net(), net(), task=None, knowledge={"kd": (Balanced(), kdx.SoftTargets())})
    with pytest.raises(ValueError, match="balanced against the task loss, but there is none"):
        kdx.fit(lonely, loader())
    with pytest.raises(ValueError, match="compile=True"):
        kdx.fit(scheme, loader(), compile=True)


def test_mutual_peers_share_scheduled_and_balanced_weights(net, loader) -> None:
    scheme = kdx.Mutual([net(3), net(4)], knowledge={"kd": (Balanced(every=2), kdx.SoftTargets(1.0))})
    kdx.fit(scheme, loader, epochs=1)
    value = float(scheme.weight("kd"))
    assert math.isfinite(value)
    assert value != 1.0


def test_recipes_take_schedules() -> None:
    recipe = load_recipe(
        "fashion-offline", {"knowledge": {"kd": {"weight": {"kind": "warmup", "to": 0.9, "steps": 20}}}}
    )
    assert recipe.knowledge["kd"].weight == Warmup(0.9, 20)
    recipe = load_recipe("fashion-offline", {"knowledge": {"kd": {"weight": {"kind": "balanced", "ratio": 0.5}}}})
    assert recipe.knowledge["kd"].weight == Balanced(0.5)
    with pytest.raises(RecipeError, match=r"knowledge\.kd\.weight"):
        load_recipe("fashion-offline", {"knowledge": {"kd": {"weight": {"kind": "sine"}}}})
