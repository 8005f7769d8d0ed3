"""Stored hidden states with the teacher's head once: logits of the whole vocabulary in a fraction of their bytes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

import kdx
from kdx.batch import Batch
from kdx.datasets import View
from kdx.errors import CaptureError, StoreError
from kdx.store import Store, write_store
from kdx.store.sequences import places_of
from kdx.teachers import Stored
from tests.store.conftest import contents_of
from tests.store.test_sequences import VOCABULARY, Sentences, padding

SIZES = {"vocab_size": VOCABULARY, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}


def llama(width: int = 8, **options: object) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = LlamaConfig(hidden_size=width, intermediate_size=16, **SIZES, **options)
        return LlamaForCausalLM(config)


def gemma() -> Gemma2ForCausalLM:
    """Tied embeddings and a softcap."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = Gemma2Config(hidden_size=8, head_dim=4, intermediate_size=16, final_logit_softcapping=2.0, **SIZES)
        return Gemma2ForCausalLM(config)


class Own(nn.Module):
    """A model of one's own: body and a head with a bias, logits times 3."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.out = nn.Embedding(VOCABULARY, 8), nn.Linear(8, 8), nn.Linear(8, VOCABULARY)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return 3 * self.out(self.body(self.embed(input_ids)).cumsum(1))


MODELS = {
    "llama": (llama, {}),
    "gemma": (gemma, {}),
    "a tap": (llama, {"what": "hidden:model.norm"}),
    "own": (Own, {"output": kdx.Head("out:input", "out", scale=3.0)}),
}


def rows(numbers: list[int], **options: object) -> Batch:
    return padding(View(Sentences()).__getitems__(numbers), **options)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "atol"), [("fp32", 1e-5), ("fp16", 0.02)])
def test_the_logits_come_back_as_hidden_states_and_the_head_and_are_the_teachers(tmp_path, name, dtype, atol) -> None:
    build, options = MODELS[name]
    model = build().eval()
    options = {"what": "hidden"} | options
    store = write_store(tmp_path, model, View(Sentences()), dtype=dtype, batch_size=5, collate=padding, **options)
    batch = rows([4, 17, 9], to=14)
    captured = store.read(batch.index, places=places_of(batch.inputs))
    held = captured.response("logits")
    assert isinstance(held, kdx.LinearLogits)
    assert "logits" not in captured
    with torch.no_grad():
        said = model(**batch.inputs)
    said = said if isinstance(said, torch.Tensor) else said.logits
    at = batch.inputs["attention_mask"].bool()
    torch.testing.assert_close(held.dense()[at], said[at], rtol=1e-5, atol=atol)
    assert captured.logits.equal(held.dense())  # for what reads the tensor


def test_the_head_is_in_the_store_once_in_the_teachers_dtype(tmp_path) -> None:
    model = llama(dtype=torch.bfloat16).to(torch.bfloat16)
    store = write_store(tmp_path, model, View(Sentences()), what="hidden", batch_size=8, shard_rows=8, collate=padding)
    head = load_file(tmp_path / "head.safetensors")
    assert list(head) == ["weight"]
    assert head["weight"].equal(model.lm_head.weight)
    tokens = sum(len(row) for row in Sentences().rows)
    stored = sum(store._shard(k)["hidden.states"][0].nbytes for k in range(store.manifest.shards))
    assert stored == 2 * 8 * tokens
    one, two = (store.read(torch.tensor([3]), places=None).response("logits") for _ in range(2))
    assert one.weight is two.weight
    assert one.hidden.dtype == torch.bfloat16


def test_an_interrupted_store_ends_as_one_written_in_one_go_and_a_damaged_head_is_noticed(tmp_path) -> None:
    options = {"what": "hidden", "batch_size": 4, "shard_rows": 8, "collate": padding}

    def stop(done: int, total: int) -> None:
        assert total == 3
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "part", llama(), View(Sentences()), progress=stop, **options)
    (tmp_path / "part" / "head.safetensors").unlink()
    with pytest.raises(StoreError, match="is incomplete: 1 of 3 shards"):
        Store(tmp_path / "part")
    for folder in ("part", "whole"):
        store = write_store(tmp_path / folder, llama(), View(Sentences()), **options)
    assert contents_of(tmp_path / "part") == contents_of(tmp_path / "whole")
    path = tmp_path / "whole" / "head.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"head.safetensors is damaged: not as written"):
        store.read(torch.tensor([0]))
    with pytest.raises(StoreError, match=r"damaged: head.safetensors"):
        store.verify()


def test_training_from_stored_hidden_states_is_training_from_the_teacher(tmp_path) -> None:
    teacher, view = llama().eval(), View(Sentences())
    write_store(tmp_path, teacher, view, what="hidden", dtype="fp32", collate=padding)

    def distilled(source: object, component: kdx.knowledge.Knowledge) -> list[torch.Tensor]:
        student, task = llama(4), kdx.make("task", "causal-lm")
        scheme = kdx.Offline(student, source, task=(0.5, task), knowledge={"kd": component})
        loader = DataLoader(view, 6, collate_fn=padding)
        options = {"optimizer": kdx.Ref("SGD", lr=0.1), "device": "cpu", "seed": 0, "progress": False}
        kdx.fit(scheme, loader, epochs=2, **options)
        return [parameter.detach() for parameter in student.parameters()]

    for component in (
        kdx.SoftTargets(2.0),
        kdx.make("knowledge", "dkd", temperature=2.0),
    ):  # the second reads the tensor
        cached, live = distilled(Stored(tmp_path, teacher=teacher), component), distilled(teacher, component)
        for a, b in zip(cached, live, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["hidden", "topk:5@2"])
def test_a_student_whose_logits_are_not_made_learns_from_the_store_what_one_with_logits_learns(tmp_path, what) -> None:
    teacher, view = llama().eval(), View(Sentences())
    stored = Stored(write_store(tmp_path, teacher, view, what=what, dtype="fp32", collate=padding))
    found = []
    for head in (None, "auto"):
        student, task = llama(4), kdx.make("task", "causal-lm")
        output = None if head is None else kdx.Head.of(student)
        options = {"task": (0.5, task), "knowledge": {"kd": kdx.SoftTargets(2.0)}, "student_output": output}
        loss = kdx.Offline(student, stored, **options)(rows([4, 17, 9], to=14)).total
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in student.parameters())])
    for made, held in zip(*found, strict=True):
        torch.testing.assert_close(held, made, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "options", "error", "message"),
    [
        (Own, {}, CaptureError, r"Own does not say where its hidden states .* kdx.Head\(hidden=tap, layer=name\)"),
        (Own, {"output": lambda out: out}, ValueError, r"output: hidden states are stored with the head"),
        (llama, {"what": "hidden:model.norm", "output": kdx.Head("model", "lm_head")}, ValueError, "name two taps"),
        (llama, {"what": ["hidden", "topk:3"]}, ValueError, "the logits are stored in one form"),
        (Own, {"output": kdx.Head("embed", "out", scale=3.0)}, CaptureError, r"own last logits differ"),
        (Own, {"output": kdx.Head("out:input", "out")}, CaptureError, r"own last logits differ .* with scale 1"),
    ],
    ids=["no head", "a function", "two taps", "two forms", "another tap", "another scale"],
)
def test_a_head_that_is_not_known_or_not_the_models_is_refused(tmp_path, build, options, error, message) -> None:
    with pytest.raises(error, match=message):
        write_store(tmp_path, build(), View(Sentences()), collate=padding, **({"what": "hidden"} | options))
    assert not list(tmp_path.iterdir())
