"""Sampling: both ways draw from the model's own distribution, and leave the model as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdx.datasets import HuggingFaceGenerator, StepByStep
from kdx.datasets.generation import ends_of, generator_of, nucleus
from tests.language_models import END, VOCABULARY, Causal, Written, llama

SAMPLED = {"max_new_tokens": 5, "temperature": 1.0, "top_p": 1.0}


def left_padded() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[0, 0, 3], [1, 2, 4]]), torch.tensor([[0, 0, 1], [1, 1, 1]])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rows_of_different_length_go_on_as_each_would_alone() -> None:
    model, (ids, mask) = Causal(), left_padded()
    greedy = {"max_new_tokens": 4, "temperature": 0.0, "top_p": 1.0, "generator": seeded()}
    together = StepByStep(model).generate(ids, mask, **greedy)
    assert torch.equal(together[:, :3], ids)
    for row in range(2):
        text = ids[row][mask[row] != 0]
        for _ in range(4):
            text = torch.cat([text, model(text[None])[0, -1].argmax()[None]])
        assert torch.equal(together[row, 3:], text[-4:])


def test_a_row_that_ended_gets_nothing_more_and_all_stop_with_the_last() -> None:
    model = Written([0, 0, 5, END, 7, 7, 7, 7, 7])
    ids, mask = torch.tensor([[1, 1], [0, 1]]), torch.tensor([[1, 1], [0, 1]])
    found = StepByStep(model, ends=[END]).generate(ids, mask, **SAMPLED, generator=seeded())
    assert found.tolist() == [[1, 1, 5, END, -1], [0, 1, 0, 5, END]]


def test_what_is_drawn_has_the_probabilities_of_the_model_at_the_temperature() -> None:
    model = Causal()
    ids = torch.tensor([[3]]).expand(20_000, 1)
    drawn = StepByStep(model).generate(
        ids, torch.ones_like(ids), max_new_tokens=1, temperature=0.7, top_p=1.0, generator=seeded()
    )
    share = torch.bincount(drawn[:, 1], minlength=VOCABULARY) / len(ids)
    wanted = (model(ids[:1])[0, -1] / 0.7).softmax(0)
    assert (share - wanted).abs().max() < 4 * (wanted * (1 - wanted) / len(ids)).sqrt().max()


def test_the_nucleus_is_the_fewest_likeliest_tokens_that_reach_the_share() -> None:
    probabilities = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    assert nucleus(probabilities, 1.0) is probabilities
    assert (nucleus(probabilities, 0.7) > 0).tolist() == [[False, True, False, True]]
    assert (nucleus(probabilities, 0.71) > 0).tolist() == [[False, True, True, True]]
    assert (nucleus(probabilities, 1e-6) > 0).tolist() == [[False, True, False, False]]


@pytest.mark.parametrize("make", [Causal, llama])
def test_a_seed_gives_the_same_tokens_whatever_was_drawn_before_and_draws_nothing_outside(make) -> None:
    model, (ids, mask) = make(), left_padded()
    generator = generator_of(model, ends=[END], pad=0)
    first = generator.generate(ids, mask, **SAMPLED, generator=seeded(3))
    torch.rand(7)
    state = torch.get_rng_state()
    again = generator.generate(ids, mask, **SAMPLED, generator=seeded(3))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    others = [generator.generate(ids, mask, **SAMPLED, generator=seeded(seed)) for seed in range(4, 9)]
    assert any(other.shape != first.shape or not torch.equal(other, first) for other in others)


@pytest.mark.parametrize("make", [lambda: Causal(dropout=0.5), lambda: llama(attention_dropout=0.5)])
def test_dropout_is_off_no_graph_is_made_and_every_mode_comes_back(make) -> None:
    model, (ids, mask) = make().train(), left_padded()
    frozen = next(module for module in model.modules() if isinstance(module, nn.Embedding)).eval()
    seen = []
    model.register_forward_hook(lambda module, *_: seen.append((module.training, torch.is_grad_enabled())))
    found = generator_of(model, ends=[], pad=0).generate(ids, mask, **SAMPLED, generator=seeded())
    assert set(seen) == {(False, False)}
    assert model.training
    assert not frozen.training
    assert not found.requires_grad


def test_hugging_face_samples_as_the_plain_loop_and_passes_over_the_config() -> None:
    model, (ids, mask) = llama(), left_padded()
    model.generation_config.top_k, model.generation_config.repetition_penalty = 1, 3.0
    model.generation_config.do_sample, model.generation_config.suppress_tokens = True, [3, 4, 5]
    before = copy.deepcopy(model.generation_config.to_dict())
    greedy = {"max_new_tokens": 6, "temperature": 0.0, "top_p": 1.0, "generator": seeded()}
    found = HuggingFaceGenerator(model, ends=[END], pad=0).generate(ids, mask, **greedy)
    plain = StepByStep(model, ends=[END]).generate(ids, mask, **greedy)
    for row in range(2):
        text = plain[row][plain[row] >= 0]
        assert torch.equal(found[row, : len(text)], text)
    drawn = HuggingFaceGenerator(model, ends=[], pad=0).generate(
        ids.repeat(200, 1), mask.repeat(200, 1), max_new_tokens=1, temperature=1.0, top_p=1.0, generator=seeded()
    )
    assert len(drawn[:, 3].unique()) > 5  # with the top_k of the config it would be one for each prompt
    assert model.generation_config.to_dict() == before


def test_more_tokens_than_the_model_has_positions_for_are_refused() -> None:
    model, (ids, mask) = llama(max_position_embeddings=7), left_padded()
    with pytest.raises(ValueError, match="prompts of up to 3 tokens and 5 new ones are more than the 7 positions"):
        HuggingFaceGenerator(model, ends=[END]).generate(ids, mask, **SAMPLED, generator=seeded())


def test_a_model_that_gives_something_else_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(VOCABULARY, 4), nn.Flatten(), nn.Linear(12, 5))
    ids, mask = left_padded()
    with pytest.raises(ValueError, match=r"expected logits \[N, L, V\] of ids \[2, 3\] from Sequential"):
        StepByStep(model).generate(ids, mask, **SAMPLED, generator=seeded())


def test_the_end_tokens_are_those_of_the_config() -> None:
    assert ends_of(llama()) == (END,)
    assert ends_of(llama(eos_token_id=[7, 8])) == (7, 8)
    assert ends_of(Causal()) == ()
    assert isinstance(generator_of(llama(), ends=(), pad=0), HuggingFaceGenerator)
    assert isinstance(generator_of(Causal(), ends=(), pad=0), StepByStep)
