"""Checks that every knowledge component has to pass, whatever its formula."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdx.batch import Batch
from kdx.capture import Captured
from kdx.knowledge.base import Knowledge
from kdx.testing import KnowledgeTags
from kdx.testing.knowledge import check_finite_scalar, check_inputs_unchanged
from kdx.testing.knowledge_numerics import check_autocast, check_compiles, check_half_precision
from kdx.testing.knowledge_state import check_copies, check_pickles, check_state_dict

Features = Mapping[str, Tensor]
CHECKS = (
    check_finite_scalar,
    check_inputs_unchanged,
    check_half_precision,
    check_autocast,
    check_copies,
    check_pickles,
    check_state_dict,
    check_compiles,
)


def _loss(
    component: Knowledge, student: Features, teacher: Features, batch: Batch, *, autocast: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and its gradients with respect to the student's features; the backward pass is never under autocast."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in student.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = component(Captured(leaves), Captured({name: value.detach() for name, value in teacher.items()}), batch)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return loss.detach(), dict(zip(leaves, found, strict=True))


@pytest.fixture
def loss_and_gradients() -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    """``(component, student, teacher, batch)`` -> the loss and its gradients in the student's features."""
    return _loss


@pytest.fixture
def random() -> Callable[..., Tensor]:
    """``random(*shape, seed=0, std=1)``: a float64 tensor of normal numbers."""

    def draw(*shape: int, seed: int = 0, std: float = 1.0) -> Tensor:
        return torch.from_numpy(np.random.default_rng([seed, *shape]).normal(0.0, std, shape))

    return draw


@pytest.fixture
def check_component() -> Callable[..., None]:
    """``check(component, student, teacher, batch)``: what the conformance kit asks, on these float64 features.

    One finite float32 number that is as exact as float32 allows; inputs untouched; half-precision features give what
    their rounded float64 values give; autocast changes nothing; copies, pickles and loaded states give the same number;
    a full graph compiles.
    """

    def check(component: Knowledge, student: Features, teacher: Features, batch: Batch | None = None) -> None:
        batch = batch or Batch(None)
        tags = KnowledgeTags(inputs=lambda rows: (student, teacher, batch))
        for asked in CHECKS:
            asked(component, tags)

        single = [{name: value.float() for name, value in side.items()} for side in (student, teacher)]
        exact = [{name: value.double() for name, value in side.items()} for side in single]
        expected, wanted = _loss(component.double(), *exact, batch)
        assert expected.dtype == torch.float64
        loss, found = _loss(copy.deepcopy(component).float(), *single, batch)
        torch.testing.assert_close(loss.double(), expected, rtol=2e-5, atol=2e-6)
        for name, gradient in found.items():
            assert (gradient.double() - wanted[name]).norm() <= 5e-5 * wanted[name].norm() + 1e-6

    return check


@pytest.fixture
def check_relation(random: Callable[..., Tensor]) -> Callable[..., None]:
    """``check(loss)``: what holds for every relation between samples, ``loss(student, teacher)`` of ``[N, ...]``.

    Finite with finite gradients for zero rows, duplicates, a batch of one or none; the samples' order does not matter;
    0 with zero gradient (below ``still``) when student equals teacher; maps are flattened; widths may differ; fp64
    gradients are right.
    """

    def check(loss: Callable[[Tensor, Tensor], Tensor], *, ordered: bool = False, still: float = 1e-12) -> None:
        s, t = random(7, 6, seed=1), random(7, 6 if ordered else 4, seed=2)
        assert torch.autograd.gradcheck(loss, (s.clone().requires_grad_(), t.clone().requires_grad_()))
        torch.testing.assert_close(loss(s.reshape(7, 3, 2, 1), t), loss(s, t))
        if not ordered:
            order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(loss(s[order], t[order]), loss(s, t))

        awkward = s.clone()
        awkward[1] = 0
        awkward[3] = awkward[2]
        awkward[4] = -awkward[2]
        for one, other in ((awkward, t), (s, torch.zeros_like(t)), (torch.zeros_like(s), t), (s[:1], t[:1])):
            leaf = one.clone().requires_grad_()
            value = loss(leaf, other)
            value.backward()
            assert torch.isfinite(value)
            assert torch.isfinite(leaf.grad).all()

        leaf = awkward.clone().requires_grad_()
        value = loss(leaf, awkward)
        value.backward()
        assert abs(value.item()) < 1e-15
        assert leaf.grad.abs().max() < still

        empty = torch.zeros(0, 6, requires_grad=True)
        value = loss(empty, torch.zeros(0, 6))
        value.backward()
        assert value == 0
        with pytest.raises(ValueError, match=r"of the same N samples, got \[7, 6\] and \[3,"):
            loss(s, t[:3])

    return check


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that ops made and that are still alive, and their highest number."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage(), inputs)
        return result

    def _add(self, storage, inputs) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        if key in self.seen or key in inputs:
            return
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


@pytest.fixture
def peak_bytes() -> Callable[[Callable[[], object]], int]:
    """``peak_bytes(run)``: the most bytes that were alive at once of what ``run`` allocated in tensors."""

    def measure(run: Callable[[], object]) -> int:
        with _LiveBytes() as live:
            run()
        return live.peak

    return measure
