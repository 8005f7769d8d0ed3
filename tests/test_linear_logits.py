"""Logits that are not held: what they are made of, and what of them can be had without making them."""

from __future__ import annotations

import pytest
import torch

from kdx import LinearLogits


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (2.0, 1.5)])
def test_dense_is_the_definition(dtype: torch.dtype, scale: float, softcap: float | None) -> None:
    hidden, weight, bias = torch.randn(2, 5, 4, dtype=dtype), torch.randn(7, 4, dtype=dtype), torch.randn(7).to(dtype)
    z = scale * (hidden.double() @ weight.double().T + bias.double())
    wanted = z if softcap is None else softcap * torch.tanh(z / softcap)
    made = LinearLogits(hidden, weight, bias, scale, softcap)
    assert made.dense().dtype == made.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(made.dense().double(), wanted, rtol=2e-6, atol=2e-6)


def test_shape_dimensions_rows_and_classes() -> None:
    held = LinearLogits(torch.randn(2, 5, 4), torch.randn(7, 4), torch.randn(7))
    assert (held.shape, held.dim(), len(held)) == ((2, 5, 7), 3, 2)
    mask = torch.rand(2, 5) > 0.5
    assert torch.equal(held.of_rows(mask).dense(), held.dense()[mask])
    few = held.of_classes(3)
    assert few.weight.data_ptr() == held.weight.data_ptr()
    torch.testing.assert_close(few.dense(), held.dense()[..., :3])


def test_detach_lets_go_of_the_head_too() -> None:
    head = torch.nn.Linear(4, 7)
    held = LinearLogits(torch.randn(3, 4, requires_grad=True), head.weight, head.bias)
    assert held.dense().requires_grad
    assert not held.detach().dense().requires_grad


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weight": torch.zeros(7, 5)}, r"weight: expected \[V, H\] .* got \[7, 5\] for \[3, 4\]"),
        ({"bias": torch.zeros(6)}, r"bias: expected \[7\], one per class, got \[6\]"),
        ({"softcap": 0.0}, "softcap: expected a number above 0"),
        ({"scale": float("nan")}, "scale: expected a finite number"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LinearLogits(**({"hidden": torch.zeros(3, 4), "weight": torch.zeros(7, 4)} | options))
