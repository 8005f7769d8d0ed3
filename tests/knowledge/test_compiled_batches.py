"""Compiled as one graph, a component takes batches of any size: the last batch of an epoch is a smaller one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import kdx
from kdx.batch import Batch
from kdx.capture import Captured

LAYERS = {"student": ("map", "vector"), "teacher": ("map", "vector")}
# Those that make masks, matrices or means of the batch; tests/knowledge/conftest.py compiles every component once.
OPTIONS = {
    "dkd": {},
    "dist": {},
    "rkd": LAYERS,
    "pkt": LAYERS,
    "irg": LAYERS | {"transform": "edge"},
    "fsp": LAYERS,
    "semckd": {"student": "map", "teacher": "map"},
}


@pytest.mark.filterwarnings("ignore:.*Function.* should not be instantiated:DeprecationWarning")  # torch's own tracer
@pytest.mark.parametrize("name", OPTIONS)
def test_a_smaller_batch_gives_the_loss_and_gradient_it_gives_uncompiled(random, name):
    component = kdx.make("knowledge", name, **OPTIONS[name]).double()
    student = {"logits": random(6, 5), "vector": random(6, 4), "map": random(6, 3, 4, 4)}
    teacher = {"logits": random(6, 5, seed=1), "vector": random(6, 4, seed=1), "map": random(6, 3, 2, 2, seed=1)}
    if not component.ready:
        component.setup(Captured(student), Captured(teacher))

    def loss_of(s: dict[str, Tensor], t: dict[str, Tensor], y: Tensor) -> Tensor:
        return component(Captured(s), Captured(t), Batch(None, y))

    torch.compiler.reset()
    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    for rows in (6, 5, 3):
        found = []
        for function in (compiled, loss_of):
            s = {key: value[:rows].clone().requires_grad_() for key, value in student.items()}
            t = {key: value[:rows].clone() for key, value in teacher.items()}
            loss = function(s, t, torch.arange(rows) % 5)
            found.append(
                (loss, *torch.autograd.grad(loss, list(s.values()), allow_unused=True, materialize_grads=True))
            )
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
