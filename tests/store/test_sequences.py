"""Sequences of different length in a store: written without their padding, read back as the batch pads them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import kdx
from kdx.batch import Batch
from kdx.datasets import View
from kdx.errors import StoreError
from kdx.knowledge import HiddenStates
from kdx.store import Store, write_store
from kdx.store.fingerprint import input_digests
from kdx.store.sequences import places_of
from kdx.teachers import Stored
from tests.store.conftest import contents_of

VOCABULARY = 19


class Sentences(Dataset):
    """23 rows of 3 to 12 tokens."""

    def __init__(self, longest: int = 12) -> None:
        generator = torch.Generator().manual_seed(4)
        lengths = torch.randint(3, 13, (23,), generator=generator).tolist()
        self.rows = [torch.randint(1, VOCABULARY, (n,), generator=generator)[:longest] for n in lengths]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int):
        return self.rows[row], self.rows[row]


class Causal(nn.Module):
    """A causal language model: the logits at a place depend on the tokens up to it."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, width), nn.Linear(width, VOCABULARY)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        kept = self.embed(input_ids) * attention_mask[..., None]
        return self.head(kept.cumsum(1))


def padding(
    rows: list[Batch], *, left: bool = False, to: int = 0, cut: int = 99, mask: bool = True, first: int = 1
) -> Batch:
    """Rows padded to the longest, with labels of -100 there and at the first token."""
    size = max(to, *(min(cut, len(row.inputs)) for row in rows))
    ids = torch.zeros(len(rows), size, dtype=torch.int64)
    attended, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for place, row in enumerate(rows):
        n = min(cut, len(row.inputs))
        where = slice(size - n, size) if left else slice(0, n)
        ids[place, where] = row.inputs[:n]
        labels[place, where.start + first : where.stop] = row.inputs[first:n]
        attended[place, where] = 1
    inputs = {"input_ids": ids} | ({"attention_mask": attended} if mask else {})
    return Batch(inputs, labels, torch.tensor([row.index for row in rows]))


@pytest.fixture
def model() -> Causal:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Causal()


def wider(**options: Any) -> Callable[[list[Batch]], Batch]:
    return lambda rows: padding(rows, **options)


@pytest.mark.parametrize("what", ["logits", "topk:19", "features:embed"])
@pytest.mark.parametrize("left", [False, True])
def test_rows_are_stored_without_padding_and_come_back_as_another_batch_pads_them(tmp_path, model, what, left) -> None:
    view = View(Sentences())
    options = {"what": [what] if what.startswith("topk") else ["logits", what][what == "logits" :], "dtype": "fp32"}
    store = write_store(tmp_path, model, view, batch_size=5, shard_rows=10, collate=padding, **options)
    tokens = sum(len(row) for row in view.dataset.rows)
    assert sum(len(store._shard(k)[name][0]) for k in range(3) for name in store.manifest.ragged[:1]) == tokens
    tap = "embed" if what == "features:embed" else "logits"
    for rows, to in (([3, 22, 0, 11], 0), ([7], 17), (list(range(23)), 0)):
        batch = padding(view.__getitems__(rows), left=left, to=to)
        with torch.no_grad():
            said = model.embed(batch.inputs["input_ids"]) if tap == "embed" else model(**batch.inputs)
        back = store.read(batch.index, places=places_of(batch.inputs))[tap]
        held = batch.inputs["attention_mask"].bool()
        assert back.shape == said.shape
        assert back.isfinite().all()
        torch.testing.assert_close(back[held], said[held], rtol=1e-5, atol=1e-5)
    alone = store.read(torch.tensor([5, 9]))[tap]
    assert alone.shape[1] == max(len(view.dataset.rows[5]), len(view.dataset.rows[9]))


def test_a_store_of_sequences_that_was_interrupted_ends_as_one_written_in_one_go(tmp_path, model) -> None:
    options = {"what": ["logits", "features:embed"], "batch_size": 4, "shard_rows": 8, "collate": padding}

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "part", model, View(Sentences()), progress=stop, **options)
    with contextlib.suppress(StoreError):
        Store(tmp_path / "part")
    write_store(tmp_path / "part", model, View(Sentences()), **options)
    write_store(tmp_path / "whole", model, View(Sentences()), **options)
    assert contents_of(tmp_path / "part") == contents_of(tmp_path / "whole")


def test_a_sample_has_one_hash_however_far_and_on_which_side_it_is_padded() -> None:
    rows = View(Sentences()).__getitems__([4, 6, 9])
    once = input_digests(padding(rows).inputs, 3)
    assert once.equal(input_digests(padding(rows, left=True, to=20).inputs, 3))
    changed = padding(rows)
    changed.inputs["input_ids"][1, 0] += 1
    assert (once != input_digests(changed.inputs, 3)).tolist() == [False, True, False]
    assert (once != input_digests(padding(rows, cut=5).inputs, 3)).tolist() == [len(row.inputs) > 5 for row in rows]
    plain = padding(rows[:1], mask=False).inputs["input_ids"]  # a tensor alone is hashed as ever
    assert input_digests(plain, 1).equal(input_digests({"input_ids": plain}, 1))


def distilled(model: Causal, store: object, loader: DataLoader, **options: Any) -> list[torch.Tensor]:
    torch.manual_seed(1)
    task = kdx.make("task", "causal-lm")
    teacher = model if store is None else Stored(store)
    scheme = kdx.Offline(Causal(4), teacher, task=(0.5, task), knowledge={"kd": (0.5, kdx.SoftTargets(2.0))})
    kdx.fit(scheme, loader, device="cpu", seed=0, progress=False, **({"epochs": 2} | options))
    return [parameter.detach() for parameter in scheme.student.parameters()]


def test_training_from_stored_sequences_is_training_from_the_teacher_whatever_the_batches(tmp_path, model) -> None:
    view = View(Sentences())
    write_store(tmp_path, model, view, dtype="fp32", collate=padding)
    for collate in (wider(left=True), wider(to=15)):
        loader = DataLoader(view, 6, shuffle=True, collate_fn=collate, generator=torch.Generator().manual_seed(3))
        cached = distilled(model, tmp_path, loader)
        loader.generator.manual_seed(3)
        for a, b in zip(cached, distilled(model, None, loader), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("longest", "collate", "message"),
    [
        (
            5,
            padding,
            r"sequences cut by the store .*: sample \d+ \(\d+ of 23 .*\) has \d+ tokens in the batch and 5 in",
        ),
        (12, wider(cut=5), r"sequences cut by the batch: sample \d+ .* has 5 tokens in the batch and \d+ in the store"),
        (12, wider(mask=False), r"sequences cut by the store .*give the inputs an item attention_mask that is 0 there"),
    ],
    ids=["cut by the store", "cut by the batch", "padded without a mask"],
)
def test_sequences_of_other_lengths_than_the_stored_ones_are_refused(
    tmp_path, model, longest, collate, message
) -> None:
    write_store(tmp_path, model, View(Sentences(longest)), collate=padding)
    batch = collate(View(Sentences()).__getitems__(list(range(23))))
    with pytest.raises(StoreError, match=message):
        Stored(tmp_path)(batch)


def test_what_would_be_learned_from_padding_is_refused(tmp_path, model) -> None:
    write_store(tmp_path, model, View(Sentences()), what=["logits", "features:embed"], collate=padding)
    rows = View(Sentences()).__getitems__([4, 6, 9])

    def learns(component, collate, **options: Any) -> None:
        task = kdx.make("task", "causal-lm", **options)
        scheme = kdx.Offline(Causal(), Stored(tmp_path), task=task, knowledge={"kd": component})
        scheme.setup(collate(rows))
        scheme(collate(rows))

    message = (
        r"'kd' \(\w+\): the first token of sample \d is to be predicted from the padding .* label -100, or pad behind"
    )
    for component, collate, options in (
        (kdx.SoftTargets(1.0), wider(left=True, first=0), {}),
        (kdx.SoftTargets(1.0), wider(left=True), {"taught": "attention_mask"}),
    ):
        with pytest.raises(ValueError, match=message):
            learns(component, collate, **options)
    message = r"'kd' \(\w+\): learns from the padding of the batch too, and of '\w+' the store holds the tokens alone"
    hidden = {"student": "embed", "teacher": "embed"}
    for component in (kdx.SoftTargets(1.0, void=False), kdx.Hint(**hidden), HiddenStates(mask="all", **hidden)):
        with pytest.raises(ValueError, match=message):
            learns(component, padding)
    for component, collate, options in (
        (kdx.SoftTargets(1.0), wider(first=0), {}),
        (kdx.SoftTargets(1.0), padding, {"taught": "attention_mask"}),
        (HiddenStates(**hidden), wider(left=True, first=0), {}),
    ):
        learns(component, collate, **options)


def test_other_tokens_than_the_teachers_stop_the_training(tmp_path, model) -> None:
    data = Sentences()
    write_store(tmp_path, model, View(data), collate=padding)
    data.rows[2][1] += 1
    with pytest.raises(StoreError, match="other inputs than the teacher saw: sample 2 in view 0"):
        distilled(model, tmp_path, DataLoader(View(data), 6, collate_fn=padding))


def test_samples_of_different_length_without_a_collate_are_refused_by_a_sentence(tmp_path, model) -> None:
    with pytest.raises(StoreError, match=r"different size .* give collate=, the collate_fn of your loader, which pads"):
        write_store(tmp_path, model, View(Sentences()), batch_size=8)


def test_what_differs_from_batch_to_batch_and_is_no_sequence_is_refused(tmp_path) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.halves = nn.Identity()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.halves(input_ids[:, ::2].float()).mean(1, keepdim=True).expand(-1, 3)

    message = r"'halves' has the shape \[\d\] and \[\d\] in different batches; what differs .* are sequences of tokens"
    what = ["logits", "features:halves"]
    with pytest.raises(StoreError, match=message):
        write_store(tmp_path, Pooled(), View(Sentences()), what=what, batch_size=3, collate=padding)


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), [2, 3]),
        (torch.zeros(2, 3), None),
        ({"input_ids": torch.zeros(2, 3, dtype=torch.int64)}, [2, 3]),
        ((torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 8)), [2, 3]),
        ({"input_values": torch.zeros(2, 5), "attention_mask": torch.ones(2, 5)}, [2, 5]),
        ({"input_ids": torch.zeros(2, 3, dtype=torch.int64), "attention_mask": torch.ones(2, 1, 3, 3)}, [2, 3]),
        ({"input_ids": torch.zeros(2, 3, dtype=torch.int64), "decoder_input_ids": torch.zeros(2, 3)}, None),
        ({"pixel_values": torch.zeros(2, 3, 4, 4)}, None),
    ],
)
def test_which_inputs_are_sequences(inputs, found) -> None:
    places = places_of(inputs)
    assert (None if places is None else list(places.shape)) == found


def test_logits_with_their_classes_on_axis_1_are_never_taken_for_a_sequence(tmp_path) -> None:
    class AsMany(nn.Module):
        """As many classes as places."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 6)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.embed(ids).mT  # [N, C, L]

    ids = torch.randint(9, (8, 6))
    view, net = View(torch.utils.data.TensorDataset(ids, ids)), AsMany()
    for what, ragged in (("logits", []), ("topk:6", ["topk.values", "topk.classes", "topk.tail"])):
        store = write_store(tmp_path / what[:4], net, view, what=what, dtype="fp32", class_dim=1)
        assert store.manifest.ragged == ragged
        torch.testing.assert_close(store.read(torch.arange(8)).logits, net(ids).detach())
