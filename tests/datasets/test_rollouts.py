"""Rollouts: what becomes of a batch, how often, and that a place is found again."""

from __future__ import annotations

import itertools

import pytest
import torch

import kdx
from kdx.datasets import BatchMaker, Rollouts
from tests.language_models import END, VOCABULARY, Causal, Written, batches, hf_batch, llama, of, tokens


class Recorded:
    """A generator that writes given rows, -1 behind their end, and keeps what it was asked."""

    ends = (END,)

    def __init__(self, *written: list[int]) -> None:
        self.written = torch.tensor(written)
        self.asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def generate(self, input_ids, attention_mask, **options):
        self.asked.append((input_ids, attention_mask))
        self.options = options
        return torch.cat([input_ids, self.written[: len(input_ids)]], 1)


def test_prompts_are_continued_up_to_their_end_and_only_what_was_written_is_taught() -> None:
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [1, 3, 5, 7]])
    targets = torch.tensor([[-100, -100, 3, 4], [-100, 6, 7, 8], [-100, -100, -100, 7]])
    writer = Recorded([9, END, 2], [-1, -1, -1], [4, 4, 4])
    (batch,) = Rollouts([(ids, targets, torch.tensor([7, 8, 9]))], writer, max_new_tokens=3, pad=0)
    prompts, mask = writer.asked[0]
    assert prompts.tolist() == [[0, 1, 2], [0, 0, 5], [1, 3, 5]]
    assert mask.tolist() == [[0, 1, 1], [0, 0, 1], [1, 1, 1]]
    assert batch.inputs.tolist() == [[1, 2, 9, END, 0, 0], [5, 0, 0, 0, 0, 0], [1, 3, 5, 4, 4, 4]]
    none = -100
    assert batch.targets.tolist() == [[none, none, 9, END, none, none], [none] * 6, [none, none, none, 4, 4, 4]]
    assert batch.views["rollout"].tolist() == [2, 0, 3]
    assert batch.index.tolist() == [7, 8, 9]


def test_padding_of_the_data_is_in_no_prompt_and_the_new_rows_have_a_mask_of_their_own() -> None:
    ids = torch.tensor([[0, 0, 1, 2, 3], [4, 5, 6, 0, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    targets = torch.tensor([[-100, -100, -100, 2, 3], [-100, -100, -100, -100, -100]])
    writer = Recorded([7, END], [8, 8])
    (batch,) = Rollouts([{"input_ids": ids, "attention_mask": mask, "labels": targets}], writer, pad=0)
    assert batch.inputs["input_ids"].tolist() == [[1, 7, END, 0, 0], [4, 5, 6, 8, 8]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert (batch.targets != -100).tolist() == [[False, True, True, False, False], [False, False, False, True, True]]


def test_a_number_of_tokens_is_the_prompt_of_rows_without_one_in_the_datas_completions_too() -> None:
    ids = torch.tensor([[1, 2, 3, 4]])
    (batch,) = Rollouts([(ids, ids)], Recorded([7, 7]), prompt=3)
    assert batch.inputs.tolist() == [[1, 2, 3, 7, 7]]
    (data,) = Rollouts([(ids, ids)], Recorded([7, 7]), prompt=3, share=0)
    assert data.inputs.tolist() == [[1, 2, 3, 4]]
    assert data.targets.tolist() == [[-100, -100, -100, 4]]
    assert "rollout" not in data.views


def test_without_targets_every_row_is_a_prompt() -> None:
    ids = torch.tensor([[1, 2], [3, 4]])
    (batch,) = Rollouts([kdx.Batch(ids)], Recorded([7], [END]))
    assert batch.inputs.tolist() == [[1, 2, 7], [3, 4, END]]
    with pytest.raises(ValueError, match=r"share=0.5 takes the data's own completions.*no targets"):
        list(Rollouts([kdx.Batch(ids)] * 20, Recorded([7], [7]), share=0.5, seed=0))


def test_targets_that_the_data_shifted_stay_shifted() -> None:
    ids, labels = tokens()
    moved = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    options = {"max_new_tokens": 4, "seed": 3}
    (plain,) = Rollouts([(ids, labels)], Causal(), **options)
    (shifted,) = Rollouts([(ids, moved)], Causal(), shift=False, **options)
    assert torch.equal(plain.inputs, shifted.inputs)
    assert torch.equal(plain.targets[:, 1:], shifted.targets[:, :-1])
    assert (shifted.targets[:, -1] == -100).all()
    (data,) = Rollouts(
        [(ids, torch.nn.functional.pad(ids[:, 1:], (0, 1), value=3))], Causal(), shift=False, prompt=4, share=0
    )
    assert data.targets[:, :3].eq(-100).all()
    assert torch.equal(data.targets[:, 3:-1], ids[:, 4:])
    assert data.targets[:, -1].eq(3).all()


def test_a_student_that_ends_at_once_has_its_end_alone_to_learn() -> None:
    (batch,) = Rollouts([tokens()], Written([0] + [END] * 20), ends=END, max_new_tokens=5)
    assert batch.views["rollout"].tolist() == [1] * 4
    assert batch.targets[batch.targets != -100].tolist() == [END] * 4


def test_the_share_is_that_of_the_batches_and_the_others_are_the_datas() -> None:
    data = batches(400, rows=1)
    made = list(Rollouts(data, Recorded([7]), share=0.3, seed=0))
    own = sum("rollout" in batch.views for batch in made)
    assert 90 < own < 150
    for (ids, targets), batch in zip(data, made, strict=True):
        if "rollout" not in batch.views:
            assert torch.equal(batch.inputs, ids)
            assert torch.equal(batch.targets, targets)


def test_the_student_writes_anew_in_every_third_of_its_batches_and_the_rest_is_replayed_from_the_newest() -> None:
    data = batches(18)
    rollouts = Rollouts(data, Causal(), every=3, buffer=2, max_new_tokens=3, seed=0)
    made = list(rollouts)
    fresh = made[::3]
    assert all(not torch.equal(one.inputs, other.inputs) for one, other in itertools.combinations(fresh, 2))
    seen = set()
    for place, batch in enumerate(made):
        newest = fresh[max(0, place // 3 - 1) : place // 3 + 1]
        found = [number for number, each in enumerate(newest) if each.inputs is batch.inputs]
        assert len(found) == 1
        seen |= {found[0]} if place > 2 and place % 3 else set()
    assert seen == {0, 1}


def test_what_is_drawn_follows_from_the_seed_and_the_number_of_the_batch() -> None:
    model = Causal()

    def texts(**options) -> list[list]:
        return [batch.inputs.tolist() for batch in Rollouts(batches(), model, max_new_tokens=4, **options)]

    assert texts(seed=1) == texts(seed=1)
    assert texts(seed=1) != texts(seed=2)
    torch.manual_seed(1)
    assert texts() == texts(seed=1)
    same = [batch.inputs.tolist() for batch in Rollouts([tokens()] * 2, Causal(), max_new_tokens=4, seed=0)]
    assert same[0] != same[1]


def test_it_goes_on_from_its_state_as_if_it_had_not_stopped() -> None:
    model = Causal()

    def maker() -> Rollouts:
        return Rollouts([], model, share=0.6, every=2, buffer=3, max_new_tokens=4, seed=None)

    torch.manual_seed(4)
    data, whole = [of(each) for each in batches(12)], maker()
    wanted = [whole.make(batch) for batch in data]
    torch.manual_seed(4)
    first = maker()
    for batch in data[:7]:
        first.make(batch)
    torch.manual_seed(99)
    second = maker()
    second.load_state_dict(first.state_dict())
    for batch, expected in zip(data[7:], wanted[7:], strict=True):
        found = second.make(batch)
        assert torch.equal(found.inputs, expected.inputs)
        assert torch.equal(found.targets, expected.targets)


def test_a_model_of_hugging_face_is_asked_through_its_own_generate() -> None:
    rollouts = Rollouts([hf_batch()], llama(), max_new_tokens=5, seed=0)
    assert rollouts.ends == (END,)
    (batch,) = rollouts
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    ids, mask, targets = batch.inputs["input_ids"], batch.inputs["attention_mask"], batch.targets
    taught = targets != -100
    assert torch.equal(targets[taught], ids[taught])
    assert torch.equal(mask.sum(1) - (2 + torch.tensor([0, 1, 2, 0])), taught.sum(1))
    assert all((row == END).sum() <= 1 for row in targets)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((torch.rand(2, 3), None), r"expected token ids, int64 \[N, L\].*got torch.float32 \[2, 3\]"),
        ((torch.ones(2, 3, 4, dtype=torch.int64), None), r"got torch.int64 \[2, 3, 4\]"),
        ({"input_ids": torch.ones(1, 3, dtype=torch.int64), "position_ids": torch.ones(1, 3)}, "hold position_ids"),
        ((torch.ones(2, 3, dtype=torch.int64), torch.ones(2, dtype=torch.int64)), r"of the shape \[2, 3\], got \[2\]"),
        (
            (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)),
            "row 0 of the batch has no prompt",
        ),
    ],
)
def test_batches_that_cannot_be_continued_are_refused(given, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        list(Rollouts([given], Recorded([7], [7])))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"share": 1.5}, "share"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"every": 0}, "every"),
        ({"buffer": 0}, "buffer"),
        ({"prompt": 0}, "prompt"),
    ],
)
def test_numbers_out_of_range_are_refused(options, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Rollouts([], Causal(), **options)


def test_a_generator_that_loses_the_prompts_is_refused() -> None:
    class Wrong(Recorded):
        def generate(self, input_ids, attention_mask, **options):
            return super().generate(input_ids, attention_mask, **options)[:, input_ids.shape[1] :]

    with pytest.raises(ValueError, match=r"Wrong.generate: expected the prompts \[4, 4\] with the new tokens behind"):
        list(Rollouts([tokens()], Wrong([1, 2], [1, 2], [1, 2], [1, 2])))


def test_a_maker_of_makers_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a loader of the data, got Rollouts"):
        Rollouts(Rollouts([], Causal()), Causal())
    assert issubclass(Rollouts, BatchMaker)
    assert VOCABULARY > END
