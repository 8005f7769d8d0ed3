"""Language models are called without a cache, and for their last logits alone where nothing reads the others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kdx
from kdx.capture import Taps, call
from kdx.errors import CaptureError
from kdx.tasks import CausalLM

VOCABULARY = 31


def llama(hidden: int = 8, layers: int = 2, seed: int = 0) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    return transformers.LlamaForCausalLM(config).double()


@pytest.fixture
def documents() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (length,), generator=generator) for length in (9, 4, 7)]


def packed(documents: list[Tensor]) -> dict[str, Tensor]:
    """One row as ``DataCollatorWithFlattening`` gives it: no document predicts the first token of the next."""
    labels = torch.cat([F.pad(each[1:], (1, 0), value=-100) for each in documents])[None]
    positions = torch.cat([torch.arange(len(each)) for each in documents])[None]
    return {"input_ids": torch.cat(documents)[None], "position_ids": positions, "labels": labels}


def test_documents_in_one_row_do_not_see_each_other(documents) -> None:
    student, teacher = llama(), llama(12, seed=3)
    scheme = kdx.Offline(student, teacher, task=(1.0, CausalLM()), knowledge={"kd": kdx.SoftTargets(1.0)})
    together = scheme(packed(documents))
    alone = [scheme({"input_ids": each[None], "labels": each[None]}) for each in documents]
    numbers = [len(each) - 1 for each in documents]
    for name, term in together.terms.items():
        each = [number * one.terms[name] for number, one in zip(numbers, alone, strict=True)]
        torch.testing.assert_close(term, torch.stack(each).sum() / sum(numbers), rtol=1e-9, atol=0)
    cached = scheme(packed(documents) | {"use_cache": True})
    assert abs(cached.terms["kd"] / together.terms["kd"] - 1) > 0.005  # what transformers does by default


def test_a_mask_beside_packed_documents_is_refused_before_training(documents) -> None:
    batch = packed(documents)
    scheme = kdx.Supervised(llama(), task=CausalLM())
    mask = torch.ones_like(batch["input_ids"])
    with pytest.raises(
        ValueError, match=r"first batch of train: its position_ids begin anew .* Leave attention_mask out"
    ):
        kdx.fit(scheme, [batch | {"attention_mask": mask}], device="cpu", progress=False)
    padded = {  # on the left, as for generation
        "input_ids": documents[0][None],
        "labels": documents[0][None],
        "position_ids": torch.tensor([[1, 1, 0, 1, 2, 3, 4, 5, 6]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1]]),
    }
    for right in (batch, padded):
        assert kdx.fit(scheme, [right], device="cpu", progress=False).step == 1


def test_a_model_is_called_without_a_cache_unless_the_inputs_ask_for_one(documents) -> None:
    model, ids = llama(), documents[0][None]
    for inputs in (ids, (ids,), {"input_ids": ids}):
        assert call(model, inputs).past_key_values is None
    assert call(model, {"input_ids": ids, "use_cache": True}).past_key_values is not None
    assert model.config.use_cache  # nothing about it changes

    class Adapted(nn.Module):
        """A model with adapters, as peft makes one."""

        def __init__(self) -> None:
            super().__init__()
            self.base, self.config = model, model.config

        def get_base_model(self) -> nn.Module:
            return self.base

        def forward(self, *args, **kwargs):
            return self.base(*args, **kwargs)

    assert call(Adapted(), ids).past_key_values is None


def test_a_model_that_only_looks_like_one_is_called_with_its_inputs_alone() -> None:
    class Own(nn.Linear):
        config = "mine"

    assert call(Own(2, 2), torch.zeros(1, 2)).shape == (1, 2)


def places(model: nn.Module) -> list[int]:
    """At how many places the head runs, in every pass from now on."""
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, _args, logits: seen.append(logits.shape[1]))
    return seen


HIDDEN: dict[str, Any] = {"student": "model.norm", "teacher": "model.norm", "layout": "nlc"}


@pytest.mark.parametrize(
    ("task", "component", "expected"),
    [
        (None, lambda: kdx.Hint(**HIDDEN), (1, 1)),
        ((0.0, CausalLM()), lambda: kdx.Hint(**HIDDEN), (1, 1)),
        ((1.0, CausalLM()), lambda: kdx.Hint(**HIDDEN), (9, 1)),
        ((1.0, CausalLM()), lambda: kdx.SoftTargets(1.0), (9, 9)),
        (None, lambda: kdx.SoftTargets(1.0, student="lm_head", teacher="lm_head"), (9, 9)),
        (None, lambda: kdx.make("knowledge", "irg", vertex_weight=1.0, class_token=0, **HIDDEN), (9, 9)),
    ],
    ids=["hidden states", "a task of weight 0", "a task", "logits", "the head as a tap", "logits by the way"],
)
def test_the_logits_of_the_last_place_are_enough_where_nothing_reads_them(task, component, expected, documents) -> None:
    student, teacher = llama(), llama(seed=3)
    scheme = kdx.Offline(student, teacher, task=task, knowledge={"one": component()})
    batch = {"input_ids": torch.stack([documents[0]] * 3), "labels": torch.stack([documents[0]] * 3)}
    scheme.setup(batch)
    whole = kdx.Offline(student, teacher, task=task, knowledge={"one": copy.deepcopy(scheme.knowledge["one"])})
    seen = places(student), places(teacher)
    losses = scheme(batch)
    assert (*seen[0], *seen[1]) == expected
    whole.taps, whole.teacher = Taps(student, (*whole.taps.patterns, "logits")), kdx.teachers.Frozen(teacher)
    whole.teacher.tap(scheme.components["one"].teacher_taps)
    assert torch.equal(losses.total, whole(batch).total)
    kdx.fit(scheme, [batch], evaluate=None if task is None else [batch], device="cpu", progress=False)


def test_logits_that_nobody_asked_for_are_missed_by_name(documents) -> None:
    taps = Taps(llama(), ("logits", "model.norm"))
    taps.spare_logits()
    captured = taps(documents[0][None])
    assert captured["model.norm"].shape == (1, 9, 8)
    with pytest.raises(CaptureError, match="nothing was said to read them: name 'logits' among the taps"):
        _ = captured.logits
    taps.add(("logits",))
    assert taps(documents[0][None]).logits.shape == (1, 9, VOCABULARY)


def test_other_models_run_as_ever_where_logits_are_spared() -> None:
    taps = Taps(nn.Sequential(nn.Linear(2, 3)), ("0", "logits"))
    taps.spare_logits()
    assert taps(torch.zeros(4, 2)).logits.shape == (4, 3)


@pytest.mark.slow  # torch.compile takes twenty seconds
def test_a_compiled_scheme_calls_the_model_so_too(documents) -> None:
    scheme = kdx.Offline(llama(), llama(seed=3), task=(1.0, CausalLM()), knowledge={"kd": kdx.SoftTargets(1.0)})
    batch = kdx.Batch.of(packed(documents))
    expected = scheme(batch).total
    found = torch.compile(scheme, backend="eager")(batch).total
    torch.testing.assert_close(found, expected)
