"""Features of any layout brought to one form: maps, tokens with and without class tokens, vectors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdx.features import Feature
from kdx.features.adapters import (
    BatchNorm,
    channels,
    match,
    match_maps,
    pool,
    project,
    regressor,
    to_map,
    to_maps,
    to_vector,
)
from kdx.layout import Layout

FORMS = {
    "map 8x8": Feature(torch.randn(2, 3, 8, 8)),
    "map 4x6": Feature(torch.randn(2, 5, 4, 6)),
    "map 9x16, channels last": Feature(torch.randn(2, 9, 16, 5), Layout("nhwc")),
    "16 tokens": Feature(torch.randn(2, 16, 7), Layout("nlc", (4, 4))),
    "class + 16 tokens": Feature(torch.randn(2, 17, 6), Layout("nlc", (4, 4), 1)),
    "class + 9x16 tokens, batch second": Feature(torch.randn(145, 2, 6), Layout("lnc", (9, 16), 1)),
    "class + distillation + 4 tokens": Feature(torch.randn(2, 6, 4), Layout("nlc", (2, 2), 2)),
    "class + 4 registers + 36 tokens": Feature(torch.randn(2, 41, 4), Layout("nlc", (6, 6), 1, 4)),
    "vector": Feature(torch.randn(2, 9)),
}


@pytest.mark.parametrize("student", FORMS)
@pytest.mark.parametrize("teacher", FORMS)
def test_every_form_is_matched_with_every_other_and_projected_to_the_teachers_channels(student, teacher):
    s, t = FORMS[student], FORMS[teacher]
    source, target = match(s, t)
    assert (source.shape[0], *source.shape[2:]) == (target.shape[0], *target.shape[2:])
    assert (source.shape[1], target.shape[1]) == (s.channels, t.channels)
    adapter = project(s, t)
    assert adapter(source).shape == target.shape
    assert regressor(s, t, 5)(source).shape == target.shape
    assert sum(p.numel() for p in adapter.parameters()) == s.channels * t.channels
    a, b = match_maps(s, t)
    assert a.dim() == b.dim() == 4
    assert a.shape[2:] == b.shape[2:]


@pytest.mark.parametrize(
    ("shape", "layout", "kind"),
    [
        ((2, 3), "nc", nn.Linear),
        ((2, 3, 5), "ncl", nn.Conv1d),
        ((2, 3, 4, 5), "nchw", nn.Conv2d),
        ((2, 3, 2, 4, 5), "ncdhw", nn.Conv3d),
        ((2, 5, 3), "nlc", nn.Conv1d),
        ((2, 4, 5, 3), "nhwc", nn.Conv2d),
    ],
)
def test_the_adapter_works_over_the_channels_whatever_their_axis(shape, layout, kind):
    feature = Feature(torch.randn(shape), Layout(layout))
    adapter = project(feature, feature)
    assert type(adapter) is kind
    assert adapter.weight.shape[:2] == (3, 3)
    assert channels(feature) == 3


def test_a_map_as_tokens_keeps_the_order_of_pixels_and_its_mean_stands_for_the_class_token():
    grid, tokens = torch.arange(8.0).view(1, 2, 2, 2), torch.zeros(1, 5, 3)
    source, target = match(grid, Feature(tokens, Layout("nlc", (2, 2), 1)))
    assert torch.equal(target, tokens.mT)
    assert source[0].T.tolist() == [[1.5, 5.5], [0, 4], [1, 5], [2, 6], [3, 7]]


def test_tokens_as_a_map_leave_the_class_token_out_and_keep_the_order():
    tokens = torch.tensor([[9.0], [0], [1], [2], [3], [4], [5]])[None]
    source, _ = match(Feature(tokens, Layout("nlc", (2, 3), 1)), torch.zeros(1, 4, 2, 3))
    assert source.tolist() == [[[[0, 1, 2], [3, 4, 5]]]]
    turned, _ = match(Feature(tokens, Layout("nlc", (3, 2), 1)), torch.zeros(1, 4, 3, 2))
    assert turned.tolist() == [[[[0, 1], [2, 3], [4, 5]]]]


def test_tokens_of_a_video_lie_on_three_axes():
    tokens = Feature(torch.arange(25.0).view(1, 25, 1), Layout("nlc", (2, 3, 4), 1))
    source, _ = match(tokens, torch.zeros(1, 4, 2, 3, 4))
    assert torch.equal(source, torch.arange(1.0, 25).view(1, 1, 2, 3, 4))


def test_class_tokens_meet_class_tokens_when_the_grids_differ():
    student, teacher = torch.randn(1, 17, 2), torch.randn(1, 6, 3)  # class + 4x4, class + distillation + 2x2
    source, target = match(Feature(student, Layout("nlc", (4, 4), 1)), Feature(teacher, Layout("nlc", (2, 2), 2)))
    assert torch.equal(target.mT, teacher)
    assert torch.equal(source[:, :, 0], student[:, 0])
    torch.testing.assert_close(source[:, :, 1], student[:, 1:].mean(1))
    torch.testing.assert_close(source[:, :, 2], student[0, [1, 2, 5, 6]].mean(0, keepdim=True))


def test_equal_numbers_of_tokens_need_no_grid():
    student, teacher = torch.randn(2, 7, 3), torch.randn(2, 7, 4)
    for source, target in (match(student, teacher), match_maps(student, teacher)):
        assert torch.equal(source, student.mT)
        assert torch.equal(target, teacher.mT)


def test_equal_numbers_of_tokens_in_another_order_are_not_compared_one_to_one():
    one = Feature(torch.randn(2, 21, 3), Layout("nlc", (4, 5), 1))
    other = Feature(torch.randn(2, 21, 3), Layout("nlc", (4, 4), 1, 4))
    source, target = match(one, other)
    assert source.shape == target.shape == (2, 3, 21)
    mean = nn.functional.adaptive_avg_pool2d(one.map(), (4, 4)).flatten(2)
    torch.testing.assert_close(source[:, :, 5:], mean)
    torch.testing.assert_close(source[:, :, 1:5], mean.mean(2, keepdim=True).expand(-1, -1, 4))
    assert torch.equal(target, other.tensor.mT)


def test_a_series_meets_the_tokens_of_its_places_and_no_others():
    series, tokens = Feature(torch.randn(2, 3, 7), Layout("ncl")), torch.randn(2, 7, 4)
    source, target = match(series, tokens)
    assert torch.equal(source, series.tensor)
    assert torch.equal(target, tokens.mT)
    with pytest.raises(ValueError, match=r"its 9 tokens have to be laid on a map, and nobody said on which"):
        match(series, torch.randn(2, 9, 4))
    pooled, _ = match(series, Feature(torch.randn(2, 5, 4), Layout("nlc", (5,))))
    torch.testing.assert_close(pooled, nn.functional.adaptive_avg_pool1d(series.tensor, 5))


@pytest.mark.parametrize("length", [50, 52])
def test_a_vector_of_tokens_is_the_class_token_or_the_mean_as_somebody_said(length):
    tokens = torch.randn(2, length, 3)
    assert torch.equal(to_vector(Feature(tokens, Layout("nlc", class_token=1))), tokens[:, 0])
    torch.testing.assert_close(to_vector(Feature(tokens, Layout("nlc", class_token=0))), tokens.mean(1))
    with_registers = Feature(tokens, Layout("nlc", class_token=0, registers=4))
    torch.testing.assert_close(to_vector(with_registers), tokens[:, 4:].mean(1))
    torch.testing.assert_close(to_vector(Feature(tokens, Layout("nlc", (2, length // 2)))), tokens.mean(1))
    with pytest.raises(ValueError, match=r"give class_token=1 to take the first token, or class_token=0 for the mean"):
        to_vector(tokens)
    with pytest.raises(ValueError, match=r"nobody said whether there is a class token"):
        match(torch.randn(2, 3), tokens)


def test_a_vector_is_a_map_of_one_place_beside_any_map():
    vector = torch.randn(2, 3)
    assert to_map(vector).shape == (2, 3, 1, 1)
    assert [one.shape for one in to_maps([vector, torch.randn(2, 4, 2, 3, 3)])] == [(2, 3, 1, 1, 1), (2, 4, 2, 3, 3)]
    assert to_maps([vector, Feature(torch.randn(2, 5, 3), Layout("nlc", class_token=1))])[1].shape == (2, 3, 4)
    with pytest.raises(ValueError, match="nobody said"):
        to_maps([vector, torch.randn(2, 5, 3)])


def test_each_axis_of_two_maps_is_pooled_to_the_smaller():
    source, target = match(torch.randn(1, 2, 8, 3), torch.randn(1, 2, 4, 6))
    assert source.shape == target.shape == (1, 2, 4, 3)


def test_pooling_takes_the_mean_or_the_largest_along_any_number_of_axes():
    row = torch.tensor([1.0, 3, 5, 11])
    for axes in (1, 2, 3):
        feature = row.view(1, 1, *[1] * (axes - 1), 4)
        size = [1] * (axes - 1) + [2]
        assert pool(feature, size).flatten().tolist() == [2, 8]
        assert pool(feature, size, largest=True).flatten().tolist() == [3, 11]


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((2, 3), (3,), "the teacher's feature has shape"),
        ((2, 3), (4, 3), "different batch sizes"),
        ((2, 7, 4), (2, 9, 4), "7 tokens have to be laid on a map"),
        ((2, 16, 4), (2, 3, 4, 4), "16 tokens have to be laid on a map"),
        ((2, 3, 4, 4), (2, 16, 4), "16 tokens have to be laid on a map"),
        ((2, 3, 4, 4), (2, 3, 2, 4, 4), "maps with different numbers of axes"),
        ((2, 3, 4, 4, 4, 4), (2, 3), "expected a vector"),
    ],
)
def test_features_that_cannot_be_matched_are_refused_with_their_shapes(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        match(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout("nlc", (4, 4), 0), r"grid=\(4, 4\) and class_token=0, registers=None make 16 tokens, but there are 17"),
        (Layout("nlc", (4, 4)), r"make 16 tokens, but there are 17"),
        (Layout("nlc", (4, 4), 1, 1), r"make 18 tokens, but there are 17"),
        (Layout("nlc", class_token=1, registers=16), r"17 tokens before the grid leave none of its 17"),
    ],
)
def test_a_number_of_tokens_that_does_not_come_out_is_refused(layout, message):
    feature = Feature(torch.zeros(2, 17, 3), layout)
    for use in (to_vector, to_map):
        with pytest.raises(ValueError, match=message if layout.grid or use is to_vector else "."):
            use(feature)


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_adapters_of_a_half_precision_student_are_kept_in_float32(dtype, expected):
    assert project(torch.zeros(1, 2, dtype=dtype), torch.zeros(1, 3)).weight.dtype == expected


@pytest.mark.parametrize("axes", [0, 1, 2, 3])
def test_batch_norm_takes_one_value_per_channel_and_is_the_stock_module_otherwise(axes):
    stock = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes](3)
    ours = BatchNorm(3)
    x = torch.randn(4, 3, *[2] * axes)
    assert torch.equal(ours(x), stock(x))
    assert torch.equal(ours.running_var, stock.running_var)
    one = torch.randn(1, 3, *[1] * axes)
    before = ours.running_mean.clone()
    torch.testing.assert_close(ours(one), stock.eval()(one))
    assert torch.equal(ours.running_mean, before)
