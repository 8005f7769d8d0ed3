"""Features of any form brought to one: maps, tokens with and without a class token, vectors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdx.features.adapters import BatchNorm, match, match_maps, project, regressor, to_map, to_vector

FORMS = {
    "map 8x8": torch.randn(2, 3, 8, 8),
    "map 4x6": torch.randn(2, 5, 4, 6),
    "16 tokens": torch.randn(2, 16, 7),
    "class + 16 tokens": torch.randn(2, 17, 6),
    "class + distillation + 4 tokens": torch.randn(2, 6, 4),
    "class + 4 registers + 36 tokens": torch.randn(2, 41, 4),
    "vector": torch.randn(2, 9),
}


def without_channels(feature):
    return (feature.shape[0], *feature.shape[2:]) if feature.dim() == 4 else tuple(feature.shape[:-1])


@pytest.mark.parametrize("student", FORMS)
@pytest.mark.parametrize("teacher", FORMS)
def test_every_form_is_matched_with_every_other_and_projected_to_the_teachers_channels(student, teacher):
    s, t = FORMS[student], FORMS[teacher]
    source, target = match(s, t)
    assert without_channels(source) == without_channels(target)
    adapter = project(s, t)
    assert adapter(source).shape == target.shape
    assert regressor(s, t, 5)(source).shape == target.shape
    assert (
        sum(p.numel() for p in adapter.parameters())
        == source.shape[1 if source.dim() == 4 else -1] * (target.shape[1 if target.dim() == 4 else -1])
    )
    a, b = match_maps(s, t)
    assert a.dim() == b.dim() == 4
    assert a.shape[2:] == b.shape[2:]


def test_a_map_as_tokens_keeps_the_order_of_pixels_and_its_mean_stands_for_the_class_token():
    grid, tokens = torch.arange(8.0).view(1, 2, 2, 2), torch.zeros(1, 5, 3)
    source, target = match(grid, tokens)
    assert torch.equal(target, tokens)
    assert source[0].tolist() == [[1.5, 5.5], [0, 4], [1, 5], [2, 6], [3, 7]]


def test_tokens_as_a_map_leave_the_class_token_out_and_keep_the_order():
    tokens = torch.tensor([[9.0], [0], [1], [2], [3]])[None]
    source, _ = match(tokens, torch.zeros(1, 4, 2, 2))
    assert source.tolist() == [[[[0, 1], [2, 3]]]]


def test_class_tokens_meet_class_tokens_when_the_grids_differ():
    student, teacher = torch.randn(1, 17, 2), torch.randn(1, 6, 3)  # class + 4x4, class + distillation + 2x2
    source, target = match(student, teacher)
    assert torch.equal(target, teacher)
    assert torch.equal(source[:, 0], student[:, 0])
    torch.testing.assert_close(source[:, 1], student[:, 1:].mean(1))
    torch.testing.assert_close(source[:, 2], student[0, [1, 2, 5, 6]].mean(0, keepdim=True))


def test_equal_numbers_of_tokens_need_no_grid():
    student, teacher = torch.randn(2, 7, 3), torch.randn(2, 7, 4)
    source, target = match(student, teacher)
    assert source is student
    assert target is teacher


def test_a_vector_of_tokens_is_the_class_token_or_the_mean():
    tokens = torch.randn(2, 17, 3)
    assert torch.equal(to_vector(tokens), tokens[:, 0])
    torch.testing.assert_close(to_vector(tokens[:, 1:]), tokens[:, 1:].mean(1))
    assert to_map(to_vector(tokens)).shape == (2, 3, 1, 1)


def test_each_axis_of_two_maps_is_pooled_to_the_smaller():
    source, target = match(torch.randn(1, 2, 8, 3), torch.randn(1, 2, 4, 6))
    assert source.shape == target.shape == (1, 2, 4, 3)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((2, 3, 4, 4, 4), (2, 3), r"student feature has shape \[2, 3, 4, 4, 4\]"),
        ((2, 3), (3,), "teacher feature has shape"),
        ((2, 3), (4, 3), "different batch sizes"),
        ((2, 7, 4), (2, 9, 4), "no square grid"),
    ],
)
def test_features_that_cannot_be_matched_are_refused_with_their_shapes(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        match(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_adapters_of_a_half_precision_student_are_kept_in_float32(dtype, expected):
    assert project(torch.zeros(1, 2, dtype=dtype), torch.zeros(1, 3)).weight.dtype == expected


def test_batch_norm_takes_one_value_per_channel_and_is_the_stock_module_otherwise():
    ours, stock = BatchNorm(3), nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 2, 2)
    assert torch.equal(ours(x), stock(x))
    assert torch.equal(ours.running_var, stock.running_var)
    one = torch.randn(1, 3, 1, 1)
    before = ours.running_mean.clone()
    torch.testing.assert_close(ours(one), stock.eval()(one))
    assert torch.equal(ours.running_mean, before)
