"""Class numbers are those of the outputs, or say that there is no label."""

from __future__ import annotations

import pytest
import torch

from kdx.class_numbers import check_class_numbers


def test_classes_of_the_outputs_and_what_has_no_label_are_taken() -> None:
    for targets in (torch.tensor([0, 2, -100]), torch.full((2, 3), -100), torch.zeros(0, dtype=torch.int64)):
        check_class_numbers("it", targets, 3)
    check_class_numbers("it", torch.tensor([0, 255]), 3, ignored=255)


@pytest.mark.parametrize(
    ("targets", "ignored", "message"),
    [
        (
            [0, 3],
            -100,
            r"it: expected classes 0 .. 2, as the outputs have 3 \(or -100 for no label\), got 3 in row 1;",
        ),
        ([-1, 0], -100, "got -1 in row 0;"),
        ([0, -100, 7, 9], -100, "got 7 in row 2 and 1 more;"),
        ([0, -100], 255, r"or 255 for no label\), got -100 in row 1"),
        ([[0, 1], [1, 5]], -100, "got 5 in row 1;"),
    ],
)
def test_another_class_is_named_with_its_row(targets, ignored, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_class_numbers("it", torch.tensor(targets), 3, ignored=ignored)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float32])
def test_another_dtype_is_refused(dtype) -> None:
    with pytest.raises(TypeError, match=rf"it: expected class numbers of int64 as targets, got {dtype}; give t"):
        check_class_numbers("it", torch.zeros(2, dtype=dtype), 3)


def test_a_traced_check_looks_at_no_values() -> None:
    def checked(targets):
        check_class_numbers("it", targets, 3)
        return targets + 1

    compiled = torch.compile(checked, backend="eager", fullgraph=True)
    assert compiled(torch.tensor([5])).tolist() == [6]
