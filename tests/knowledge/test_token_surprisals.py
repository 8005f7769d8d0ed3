"""The surprisal of the tokens that are there, row by row."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdx.knowledge import token_surprisals as module
from kdx.knowledge.functional import token_surprisals


def drawn(dtype: torch.dtype = torch.float64, rows: int = 7, classes: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(rows, classes, generator=draws, dtype=torch.float64)).to(dtype)
    labels = torch.randint(classes, (rows,), generator=draws)
    labels[::3] = -100
    return logits, labels


def expected(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.double(), labels, ignore_index=-100, reduction="none")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_it_is_the_cross_entropy_of_each_row_and_its_gradient_is_rounded_once(dtype):
    logits, labels = drawn(dtype)
    weights = torch.linspace(-1, 1, len(labels), dtype=torch.float64)
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    found, wanted = token_surprisals(ours, labels), expected(theirs, labels)
    torch.testing.assert_close(found.double(), wanted, rtol=2e-6, atol=1e-7)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    (found * weights.to(found.dtype)).sum().backward()
    (wanted * weights).sum().backward()
    assert ours.grad.dtype == dtype
    error = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 3e-3, torch.float16: 5e-4}[dtype]
    assert (ours.grad.double() - theirs.grad).norm() <= error * theirs.grad.norm()


def test_of_a_token_that_is_nearly_sure_all_digits_are_right():
    logits = torch.tensor([[20.0, 0.0, 1.0], [0.0, -30.0, 40.0]], requires_grad=True)
    labels = torch.tensor([0, 2])
    found = token_surprisals(logits, labels)
    exact = torch.log1p(
        torch.tensor([1 + torch.e, 1 + torch.e**-30]).double() * torch.tensor([-20.0, -40.0]).double().exp()
    )
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)
    found.sum().backward()
    against = torch.tensor([-exact[0].item(), -exact[1].item()])
    torch.testing.assert_close(logits.grad.gather(1, labels[:, None]).squeeze(1), against, rtol=1e-6, atol=0)


def test_rows_without_a_label_are_not_read_and_classes_that_cannot_be_change_nothing():
    logits, labels = drawn(torch.float32)
    logits[labels == -100] = torch.nan
    logits[1, (labels[1] + 1) % 50] = -torch.inf
    leaf = logits.clone().requires_grad_()
    found = token_surprisals(leaf, labels)
    found.sum().backward()
    assert found[labels == -100].tolist() == [0.0] * 3
    assert found.isfinite().all()
    assert leaf.grad.isfinite().all()
    assert leaf.grad[labels == -100].count_nonzero() == 0


def test_without_any_label_it_is_0_with_a_gradient_of_0():
    leaf = torch.full((2, 3, 4), torch.nan, requires_grad=True)
    found = token_surprisals(leaf, torch.full((2, 3), -100))
    found.sum().backward()
    assert found.tolist() == [[0.0] * 3] * 2
    assert leaf.grad.count_nonzero() == 0


def test_any_chunks_give_the_same_bits(monkeypatch):
    logits, labels = drawn(torch.float32)
    results = []
    for room in (1, 1000, 1 << 26):
        monkeypatch.setitem(module.CHUNK_BYTES, "cpu", room)
        leaf = logits.clone().requires_grad_()
        found = token_surprisals(leaf, labels)
        found.sum().backward()
        results.append((found.detach(), leaf.grad))
    for found, gradient in results[1:]:
        assert torch.equal(found, results[0][0])
        assert torch.equal(gradient, results[0][1])


class Largest(TorchDispatchMode):
    """The most numbers in a tensor of a dtype that any operation gave."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.numbers = dtype, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, torch.Tensor) and each.dtype == self.dtype:
                self.numbers = max(self.numbers, each.numel())
        return result


def test_no_float_copy_of_all_logits_is_made(monkeypatch):
    logits, labels = drawn(torch.bfloat16, rows=64, classes=256)
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", 8 * 256 * 4 * 3)
    leaf = logits.requires_grad_()
    with Largest(torch.float32) as largest:
        token_surprisals(leaf, labels).sum().backward()
    assert largest.numbers <= 12 * 256


def test_second_derivatives():
    logits, labels = drawn(rows=3, classes=5)
    torch.autograd.gradgradcheck(lambda x: token_surprisals(x, labels), logits.requires_grad_())
