"""Smaller windows: the centre of the weights, outputs of the same size, what cannot be cut is named."""

from __future__ import annotations

import pytest
import torch
from kdx_search.kernel import ByKernel, Kernel, window_sizes
from search_nets import Wide, images, seeded
from torch import nn

from kdx.students import StudentError, derive
from kdx.testing import StudentTags, parametrize_checks


@parametrize_checks(ByKernel(), tags=StudentTags(teacher=lambda: seeded(Wide), inputs=images()))
def test_conformance(check) -> None:
    check()


def test_the_smaller_window_is_the_centre_with_the_rest_set_to_nothing() -> None:
    teacher = seeded(Wide).double().eval()
    x = images(4).double()
    student = derive(teacher, images(4).double(), how=ByKernel()).model.eval()
    assert student.stem.kernel_size == (3, 3)
    assert student.stem.padding == (1, 1)
    with torch.no_grad():
        ring = torch.zeros(5, 5, dtype=torch.bool)
        ring[1:4, 1:4] = True
        teacher.stem.weight[..., ~ring] = 0
        torch.testing.assert_close(student(x), teacher(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [
        (nn.Conv2d(1, 1, 7, padding=3), (3, 5, 7)),
        (nn.Conv2d(1, 1, 7, padding=3, dilation=1, stride=2), (3, 5, 7)),
        (nn.Conv2d(1, 1, 7, padding=1), (5, 7)),
        (nn.Conv2d(1, 1, 7, padding="same"), (3, 5, 7)),
        (nn.Conv2d(1, 1, 7, padding="valid"), (7,)),
        (nn.Conv2d(1, 1, 4, padding=2), (4,)),
        (nn.Conv2d(1, 1, (1, 7), padding=(0, 3)), (3, 5, 7)),
        (nn.Conv1d(1, 1, 5, padding=4, dilation=2), (3, 5)),
    ],
)
def test_windows_shrink_as_far_as_the_padding_can_follow(layer, sizes) -> None:
    assert window_sizes(layer) == sizes
    x = torch.zeros(2, 1, *[20] * (layer.weight.dim() - 2))
    for size in sizes:
        model = nn.Sequential(layer)
        before = model(x).shape
        Kernel(windows={"0": size}).build(model)
        assert model(x).shape == before


def test_layers_that_keep_their_window_are_named() -> None:
    class Own(nn.Conv2d):
        pass

    shared = nn.Conv2d(1, 1, 5, padding=2)
    model = nn.Sequential(Own(1, 1, 5, padding=2), nn.Conv2d(1, 1, 4, padding=2), shared, shared)
    with pytest.raises(StudentError, match=r"0 \(Own\): a class of its own.*1 \(Conv2d\): its window is even"):
        derive(model, torch.zeros(2, 1, 9, 9), how=ByKernel(), params="50%")
    with pytest.raises(StudentError, match=r"the window of '1' can be one of \(4,\); got 3"):
        Kernel(windows={"1": 3}).build(model)
    with pytest.raises(StudentError, match="must have a convolution at 'nothing'; there is none"):
        Kernel(windows={"nothing": 3}).build(model)
