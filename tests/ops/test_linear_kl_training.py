"""linear_kl inside a training step: adapters, checkpointing, two processes, and what peers get wrong."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kdx.ops import linear_kl
from tests.language_models import llama
from tests.ops.test_linear_kl import apart, divergence_rows, gradients, labelled, logits, sides
from tests.ranks import on_two_ranks

OP = "linear_kl"
N = 21
chunks = import_module("kdx.ops._linear_kl.chunks")
call = import_module("kdx.ops._linear_kl.call")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of peft and transformers
def test_adapters_below_a_frozen_tied_head_get_the_gradient_of_dense_logits() -> None:
    from peft import LoraConfig, get_peft_model

    teacher = llama(seed=3, vocab_size=50)
    model = get_peft_model(llama(vocab_size=50, tie_word_embeddings=True), LoraConfig(target_modules=["q_proj"]))
    for name, x in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(x, std=0.1)
    ids = torch.randint(50, (2, 9))
    adapters = [x for x in model.parameters() if x.requires_grad]
    hidden = model.base_model.model.model(ids).last_hidden_state
    head = model.get_output_embeddings().weight
    assert head is model.get_input_embeddings().weight
    z_t = teacher(ids).logits.detach()
    loss = linear_kl(hidden, head, z_t, temperature=2.0)
    want = 4 * divergence_rows(model(ids).logits.flatten(0, 1).double(), z_t.flatten(0, 1).double(), 2.0).mean()
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    for found, right in zip(gradients(loss, adapters), gradients(want, adapters), strict=True):
        assert apart(found, right) < 1e-4
    assert head.grad is None


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_step_is_the_step(backend, reentrant) -> None:
    student, teacher = sides()
    labels = labelled()

    def step(hidden, weight):
        return linear_kl(hidden.tanh(), weight, *teacher, labels=labels, alpha=0.5, backend=backend)

    plain, saved = step(*student), checkpoint(step, *student, use_reentrant=reentrant)
    assert saved.equal(plain)
    saved.backward()
    for x, right in zip(student, gradients(plain, student), strict=True):
        assert x.grad.equal(right)


RANKS = """
import sys, torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from kdx.ops import linear_kl

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(0)
ids, x_t, w_t = torch.randint(31, (29,)), torch.randn(29, 6), torch.randn(31, 6)
labels = torch.randint(31, (29,))

class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body = nn.Embedding(31, 8), nn.Linear(8, 8)

    def forward(self, at, items):
        hidden = self.body(self.embed(ids[at]))
        kl, ce = linear_kl(
            hidden, self.embed.weight, x_t[at], w_t, labels=labels[at], num_items=items, return_terms=True
        )
        return kl + ce

student = Student()
whole = student(slice(0, 29), None)
want = torch.autograd.grad(whole, list(student.parameters()))
ours = slice(0, 26) if rank == 0 else slice(26, 29)
items = torch.tensor(float(ours.stop - ours.start))
dist.all_reduce(items)
both = DistributedDataParallel(student)
loss = both(ours, items)
(2 * loss).backward()  # DistributedDataParallel takes the mean over its two processes
found = [x.grad for x in student.parameters()]
print(max(float((a - b).norm() / b.norm()) for a, b in zip(found, want)))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_with_26_and_3_tokens_take_the_step_of_one(tmp_path) -> None:
    for line in on_two_ranks(RANKS, str(tmp_path / "store")):
        assert float(line) < 2e-6


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_no_row_is_negative_near_agreement(backend, divergence) -> None:
    for gap in (1e-2, 1e-4, 1e-6):
        student, teacher = sides(gap=gap)
        rows = linear_kl(*student, *teacher, divergence=divergence, reduction="none", backend=backend)
        assert (rows >= 0).all()


def test_the_square_of_the_temperature_is_in_the_gradient_too(backend) -> None:
    student, teacher = sides()
    with_it, without = (
        gradients(linear_kl(*student, *teacher, temperature=3.0, scale_by_t2=on, backend=backend), student)
        for on in (True, False)
    )
    assert all(apart(a, 9 * b) < 1e-6 for a, b in zip(with_it, without, strict=True))


def test_no_chunk_is_larger_than_it_may_be() -> None:
    rows = call.Rows(torch.ones(2047), None, None)
    room = {"cpu": 3 * 4 * 10 * 1024, "cuda": 0}
    sizes = [at.stop - at.start for at in chunks.chunks_of(rows, 10, torch.float32, room)]
    assert sizes == [1024, 1023]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_heads_gradient_is_added_up_over_chunks_in_float32(dtype, monkeypatch) -> None:
    student, teacher = sides(dtype, classes=12)
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 1)  # a row at a time
    loss = linear_kl(*student, *teacher)
    want = divergence_rows(logits(*student), logits(*teacher)).mean()
    (found, right) = (gradients(x, student)[1] for x in (loss, want))
    assert apart(found, right) < torch.finfo(dtype).eps / 2  # one rounding, not one for each chunk


def test_gradients_in_float16_keep_what_a_loss_scale_lifts() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(32, 16, generator=generator), 0.2 * torch.randn(512, 16, generator=generator)
    t = torch.randn(32, 16, generator=generator)
    found = []
    for dtype in (torch.float32, torch.float16):
        a, b = (each.to(dtype).detach().clone().requires_grad_() for each in (x, w))
        loss = linear_kl(a, b, t.to(dtype), b.detach(), num_items=1 << 20)
        (loss * 65536).backward()
        found.append([each.grad.float() for each in (a, b)])
    for right, half in zip(*found, strict=True):
        assert (half - right).norm() < 2e-2 * right.norm()
