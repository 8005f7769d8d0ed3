"""linear_kl of heads that two processes hold in blocks of classes, against one process with whole heads."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from kdx.ops import SparseTargets, linear_kl
from tests.ranks import on_two_ranks

PROGRAM = """
import sys, tempfile
import torch, torch.distributed as dist
from kdx.ops import linear_kl

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
N, H, V = 23, 8, 57
generator = torch.Generator().manual_seed(0)
x_s, w_s, b_s = (torch.randn(*s, generator=generator) for s in ((N, H), (V, H), (V,)))
x_t, w_t = (torch.randn(*s, generator=generator) for s in ((N, H + 2), (V, H + 2)))
near_x, near_w = x_s + 1e-3 * torch.randn(N, H, generator=generator), w_s
labels = torch.randint(50, (N,), generator=generator)
labels[labels == 3] = 4
labels[::5] = -100
b_t = torch.randn(V, generator=generator)
b_s[3] = b_t[3] = float("-inf")  # a class that neither side has

def apart(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))

def check(cuts, *, teacher=(x_t, w_t), terms=None, dtype=torch.float32, **options):
    (s_from, s_to), (t_from, t_to) = cuts[rank]
    hidden, weight, bias = (x.to(dtype).requires_grad_() for x in (x_s.clone(), w_s.clone(), b_s.clone()))
    mine = [x.to(dtype).requires_grad_() for x in (x_s.clone(), w_s[s_from:s_to].clone(), b_s[s_from:s_to].clone())]
    h_t, head_t = (x.to(dtype) for x in teacher)
    options["labels"] = labels
    bias_t = b_t.to(dtype) if teacher[0] is x_t else b_s.to(dtype)
    whole = linear_kl(hidden, weight, h_t, head_t, student_bias=bias, teacher_bias=bias_t, **options)
    part = linear_kl(
        *(mine[0], mine[1], h_t, head_t[t_from:t_to]),
        **options, student_bias=mine[2], teacher_bias=bias_t[t_from:t_to], group=dist.group.WORLD,
    )
    if terms is not None:
        assert all(abs(a - b) <= 2e-6 * abs(b) for a, b in zip(part, whole)), (part, whole)
        whole, part = (sum(t * x for t, x in zip(terms, each)) for each in (whole, part))
    if part.dim():
        assert torch.allclose(part, whole, rtol=2e-6)
        upstream = torch.linspace(0, 1, N)
    else:
        assert abs(part - whole) <= 2e-6 * abs(whole), (part, whole)
        upstream = None
    want = torch.autograd.grad(whole, (hidden, weight, bias), upstream)
    found = torch.autograd.grad(part, mine, upstream, retain_graph=True)
    again = torch.autograd.grad(part, mine, upstream)
    room = 2e-6 if dtype == torch.float32 else 1e-2
    right = want[0], want[1][s_from:s_to], want[2][s_from:s_to]
    assert all(x.dtype == dtype for x in found)
    assert all(apart(a, b) < room for a, b in zip(found, right)), [apart(a, b) for a, b in zip(found, right)]
    assert all(a.equal(b) for a, b in zip(found, again))

even, uneven = [((0, 29), (0, 29)), ((29, 57), (29, 57))], [((0, 50), (0, 50)), ((50, 57), (50, 57))]
for cuts in (even, uneven):
    for options in (
        {},
        {"temperature": 2.0, "divergence": "reverse", "student_softcap": 5.0, "teacher_softcap": 7.0},
        {"divergence": "jsd", "beta": 0.3, "alpha": 0.6},
        {"skew": 0.2, "reduction": "none"},
        {"skew": 0.2, "divergence": "reverse", "reduction": "sum", "mask": torch.arange(N) % 3 > 0},
        {"alpha": 0.0},
        {"return_terms": True, "terms": (1.0, 1.0), "weights": (0.3, 0.7)},
        {"return_terms": True, "terms": (1.0, 2.0)},
    ):
        check(cuts, **options)
check(even, teacher=(near_x, near_w))
check(even, teacher=(x_t, w_t), dtype=torch.bfloat16)
check([((0, 52), (0, 52)), ((52, 57), (52, 57))], vocabulary=50)  # nothing that counts is left for the second

try:
    linear_kl(x_s, w_s[:20], x_t, w_t[: 20 + rank], group=dist.group.WORLD)
except ValueError as error:
    print(error)
dist.destroy_process_group()
"""


def test_two_processes_with_blocks_are_one_with_whole_heads(tmp_path) -> None:
    for line in on_two_ranks(PROGRAM, str(tmp_path / "store")):
        assert line.startswith("group: its processes hold [20, 20] classes of the student's head and [20, 21] of the")


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'alone'}", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_what_blocks_cannot_do_is_a_sentence(alone) -> None:
    x, w = torch.randn(4, 3).requires_grad_(), torch.randn(6, 3)
    targets = SparseTargets(torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="group: is for a teacher with all its classes"):
        linear_kl(x, w, targets, group=alone)
    ids = torch.arange(3)
    with pytest.raises(ValueError, match="vocabulary: of two lists needs whole heads"):
        linear_kl(x, w, x.detach(), w, vocabulary=(ids, ids), group=alone)
    with pytest.raises(
        ValueError, match="vocabulary: expected a number of classes that both heads have, 1 to 6, got 7"
    ):
        linear_kl(x, w, x.detach(), w, vocabulary=7, group=alone)
    loss = linear_kl(x, w, 2 * x.detach(), w, group=alone)
    with pytest.raises(RuntimeError, match="group= it is differentiated once"):
        torch.autograd.grad(loss, x, create_graph=True)
