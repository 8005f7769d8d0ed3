"""The space of a search: what is a range, what a choice, which dimensions there are where, what is refused."""

import pytest
from kdx_search.recipe_space import Choice, Range, RecipeSpace

from kdx.errors import RecipeError

SPACE = {
    "student.model": {"name": "convnet", "width": {"low": 4, "high": 10, "step": 3}},
    "task": {"weight": {"low": 0.1, "high": 1.0, "log": True}},
    "knowledge.kd": {
        "choices": [{"name": "soft-targets", "temperature": {"low": 1, "high": 4}}, {"name": "dkd", "beta": 8.0}]
    },
    "assistant": {"choices": {"none": None, "takd": {"name": "takd", "count": {"choices": [1, 2]}}}},
}


def test_dimensions_are_named_by_their_keys_and_the_options_they_lie_in() -> None:
    assert RecipeSpace(SPACE).dimensions() == {
        "student.model.width": Range(4, 10, 3),
        "task.weight": Range(0.1, 1.0, None, True),
        "knowledge.kd": Choice(
            {
                "soft-targets": {"name": "soft-targets", "temperature": Range(1, 4)},
                "dkd": {"name": "dkd", "beta": 8.0},
            }
        ),
        "knowledge.kd[soft-targets].temperature": Range(1, 4),
        "assistant": Choice({"none": None, "takd": {"name": "takd", "count": Choice({"1": 1, "2": 2})}}),
        "assistant[takd].count": Choice({"1": 1, "2": 2}),
    }


def test_a_point_gives_the_overrides_of_the_options_that_are_taken() -> None:
    values = {"student.model.width": 7, "task.weight": 0.5, "knowledge.kd": "dkd", "assistant": "takd"}
    assert RecipeSpace(SPACE).overrides(values | {"assistant[takd].count": "2"}) == {
        "student.model": {"name": "convnet", "width": 7},
        "task": {"weight": 0.5},
        "knowledge.kd": {"name": "dkd", "beta": 8.0},
        "assistant": {"name": "takd", "count": 2},
    }


def test_a_point_holds_the_dimensions_that_are_there() -> None:
    first = RecipeSpace(SPACE).first()
    assert first == {
        "student.model.width": 4,
        "task.weight": 0.1,
        "knowledge.kd": "soft-targets",
        "knowledge.kd[soft-targets].temperature": 1,
        "assistant": "none",
    }


def test_probes_show_every_option_and_both_ends_of_every_range() -> None:
    space = RecipeSpace(SPACE)
    probes = list(space.probes())
    for name, spec in space.dimensions().items():
        wanted = set(spec.options) if isinstance(spec, Choice) else {spec.low, spec.high}
        assert wanted == {point[name] for point in probes if name in point}
    assert len({tuple(point.items()) for point in probes}) == len(probes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("student.model.width", 5),
        ("student.model.width", 13),
        ("student.model.width", 7.0),
        ("student.model.width", True),
        ("task.weight", float("nan")),
        ("knowledge.kd", "rkd"),
        ("knowledge.kd[soft-targets].temperature", 2.5),
    ],
)
def test_a_value_that_the_space_has_not_is_refused(name, value) -> None:
    space = RecipeSpace(SPACE)
    with pytest.raises(RecipeError, match=r"search\.space: .* must be"):
        space.overrides(space.first() | {name: value})


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ([], "expected keys of the recipe"),
        ({}, "nothing in it is a range or a choice"),
        ({"train.batch_size": 32}, "nothing in it is a range or a choice"),
        ({"task.weight": {"low": 1.0, "high": 0.1}}, r"search\.space\.task\.weight: low must be below high"),
        ({"task.weight": {"low": 0.1, "high": "1"}}, r"task\.weight\.high: expected a number, got '1'"),
        ({"task.weight": {"low": 0.1}}, r"task\.weight: expected \{low, high, step, log\}"),
        ({"task.weight": {"low": 0, "high": 1, "log": True}}, "low must be above 0"),
        ({"task.weight": {"low": 1, "high": 9, "log": True, "step": 2}}, "do not go together"),
        ({"task.weight": {"low": 1, "high": 9, "step": 20}}, "step: expected a number above 0"),
        ({"task.weight": {"choices": [1.0]}}, "expected two options at least, got 1"),
        ({"task.weight": {"choices": [1, "1"]}}, "two options are called '1'"),
        ({"knowledge": {"choices": [{"kd": {"name": "dkd"}}, {}]}}, "has no name to call it by; write a mapping"),
        ({"data.labelled": {"low": 10, "high": 500}}, "a search does not change data: all trials are judged"),
        ({"train": {"epochs": {"low": 1, "high": 5}}}, r"does not change train\.epochs"),
        ({"train": {"choices": {"a": {"epochs": 1}, "b": {"batch_size": 8}}}}, r"does not change train\.epochs"),
        ({"task": {"choices": [{"name": "regression"}, {"name": "classification"}]}}, r"does not change task\.name"),
        ({"seed": {"choices": [1, 2]}}, "does not change seed"),
    ],
)
def test_a_space_that_is_wrong_is_refused_by_its_key(space, message) -> None:
    with pytest.raises(RecipeError, match=message):
        RecipeSpace(space)
