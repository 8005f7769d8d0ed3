"""A compiled graph as the first thing that a process does with kdx: no eager call has chosen a backend before."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOSS = """
def loss(s, t):
    return {call}
"""
STEP = """
model = torch.nn.Linear(5, 5)
terms = [kdx.SoftTargets(2.0), kdx.make("knowledge", "rkd", student="logits", teacher="logits")]

def loss(s, t):
    student, teacher = kdx.Captured({"logits": model(s)}), kdx.Captured({"logits": t})
    return sum(term(student, teacher, kdx.Batch(s)) for term in terms)
"""
MEASURE = """
import torch, kdx
{what}
s, t = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(s, t)
gradient, = torch.autograd.grad(compiled, s)
torch.testing.assert_close(compiled, loss(s, t))
torch.testing.assert_close(gradient, torch.autograd.grad(loss(s, t), s)[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    [
        pytest.param(LOSS.format(call="kdx.ops.softmax_kl(2 * s, t, temperature=2.0)"), id="softmax_kl"),
        pytest.param(LOSS.format(call="kdx.ops.rkd(2 * s, t)"), id="rkd"),
        pytest.param(LOSS.format(call="kdx.ops.pairwise_sq_dist(2 * s, t).mean()"), id="pairwise_sq_dist"),
        pytest.param(STEP, id="knowledge"),
    ],
)
def test_it_compiles_before_any_eager_call(what: str) -> None:
    command = [sys.executable, "-c", MEASURE.format(what=what)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
