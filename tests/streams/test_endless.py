"""Training on data that have no end, that grow, or that keep their place."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

import kdx
from kdx.batch import Batch
from kdx.datasets import Digits, SampleStream, ShiftFlip, View
from kdx.errors import Interrupted
from tests.stopping import Stop


def digits_stream(**options) -> SampleStream:
    return SampleStream(View(Digits("train"), range(100), transform=ShiftFlip(1)), **options)


def classifier() -> torch.nn.Sequential:
    torch.manual_seed(4)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.2), torch.nn.Linear(64, 10))


def trained(loader, **options) -> tuple[list[torch.Tensor], kdx.training.loop.Run]:
    scheme = kdx.Supervised(classifier())
    run = kdx.fit(scheme, loader, device="cpu", **options)
    return [value.clone() for value in scheme.state_dict().values()], run


def test_a_stream_without_length_needs_steps_and_takes_exactly_those() -> None:
    with pytest.raises(ValueError, match="train has no length, so give steps="):
        trained(DataLoader(digits_stream(), 16))
    assert trained(DataLoader(digits_stream(), 16), steps=11)[1].step == 11


class Noisy(IterableDataset):
    """An endless stream that draws from torch's generator; it can be replayed but keeps no place."""

    def __iter__(self):
        for row in range(10**9):
            yield Batch(torch.randn(1, 8, 8), row % 10, row)


class Placed(Noisy):
    """The same, and it keeps its place."""

    started = 0

    def __init__(self) -> None:
        self.row = 0

    def __iter__(self):
        Placed.started += 1
        while True:
            self.row += 1
            yield Batch(torch.randn(1, 8, 8), self.row % 10, self.row)

    def state_dict(self):
        return {"row": self.row}

    def load_state_dict(self, state):
        self.row = state["row"]


@pytest.mark.parametrize("source", [Noisy, Placed, digits_stream], ids=["replayed", "placed", "samples"])
def test_a_run_on_a_stream_resumes_exactly(source, tmp_path) -> None:
    def loader() -> DataLoader:
        return DataLoader(source(), 8, generator=torch.Generator().manual_seed(2))

    whole, _ = trained(loader(), steps=20, folder=tmp_path / "whole", seed=0)
    with pytest.raises(Interrupted):
        trained(loader(), steps=20, folder=tmp_path / "part", seed=0, observers=[Stop(13)])
    resumed, run = trained(loader(), steps=20, folder=tmp_path / "part", resume=True)
    assert run.step == 20
    assert all(a.equal(b) for a, b in zip(whole, resumed, strict=True))


def test_a_stream_that_keeps_its_place_is_not_replayed(tmp_path, monkeypatch) -> None:
    asked = []
    plain = SampleStream._order
    monkeypatch.setattr(SampleStream, "_order", lambda self, number: asked.append(self.position) or plain(self, number))
    with pytest.raises(Interrupted):
        trained(DataLoader(digits_stream(), 8), steps=20, folder=tmp_path, observers=[Stop(13)])
    asked.clear()
    trained(DataLoader(digits_stream(), 8), steps=20, folder=tmp_path, resume=True)
    assert asked == list(range(13 * 8, 20 * 8))


def test_looking_at_the_first_batch_for_the_setup_of_adapters_takes_it_from_no_stream() -> None:
    seen = []

    class Recorded(SampleStream):
        def __iter__(self):
            for sample in super().__iter__():
                seen.append(sample.index)
                yield sample

    hint = kdx.Hint(student="2", teacher="2")
    distil = kdx.Offline(classifier(), classifier(), knowledge={"hint": hint})
    kdx.fit(distil, DataLoader(Recorded(View(Digits("train"), range(50))), 5), steps=2, device="cpu")
    first = [sample.index for sample in islice(SampleStream(View(Digits("train"), range(50))), 10)]
    assert seen[-10:] == first


class Growing(Dataset):
    """Digits of which 16 more are known in every epoch."""

    def __init__(self) -> None:
        self.view, self.size = View(Digits("train")), 16

    def set_epoch(self, epoch: int) -> None:
        self.size = 16 * (epoch + 1)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> Batch:
        return self.view[row]


def test_data_that_grow_train_for_the_steps_that_were_given_and_resume_exactly(tmp_path) -> None:
    def loader() -> DataLoader:
        return DataLoader(Growing(), 8, shuffle=True)

    whole, run = trained(loader(), steps=20, folder=tmp_path / "whole", seed=0)
    assert (run.step, run.epoch) == (20, 4)  # 2 + 4 + 6 + 8 steps
    with pytest.raises(Interrupted):
        trained(loader(), steps=20, folder=tmp_path / "part", seed=0, observers=[Stop(9)])
    resumed, _ = trained(loader(), steps=20, folder=tmp_path / "part", resume=True)
    assert all(a.equal(b) for a, b in zip(whole, resumed, strict=True))


def test_data_that_grow_under_a_number_of_epochs_are_an_error_and_not_a_shorter_run() -> None:
    with pytest.raises(
        ValueError, match="has 4 batches in epoch 1 and had 2 at the start; for data that grow give steps="
    ):
        trained(DataLoader(Growing(), 8), epochs=3)


def test_an_iterator_that_is_used_up_is_an_error_and_not_a_shorter_run() -> None:
    batches = iter([(torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64))] * 3)
    with pytest.raises(ValueError, match="gave no batch in epoch 1, after 3 of 5 steps; an iterator runs once"):
        trained(batches, steps=5)


def test_every_row_comes_once_in_a_pass_and_then_with_another_view() -> None:
    stream = digits_stream(seed=3)
    first, second = (list(islice(stream, 100)) for _ in range(2))
    assert sorted(sample.index for sample in first) == sorted(sample.index for sample in second) == list(range(100))
    assert [sample.index for sample in first] != [sample.index for sample in second]
    before, after = ({sample.index: sample.inputs for sample in part} for part in (first, second))
    assert sum(not before[row].equal(after[row]) for row in range(100)) > 80


def test_classes_arrive_phase_by_phase_and_stay() -> None:
    view = View(Digits("train"))
    stream = SampleStream(view, phases=5)
    targets = torch.tensor([sample.targets for sample in islice(stream, len(view))])
    arrivals = sorted(int((targets == label).nonzero()[0]) for label in range(10))
    fresh = [(targets[: arrivals[2 * phase]].unique()).numel() for phase in range(5)]
    assert fresh == [0, 2, 4, 6, 8]
    assert targets[-200:].unique().numel() == 10


def test_workers_share_the_stream_among_them() -> None:
    loader = DataLoader(digits_stream(), 10, num_workers=2)
    batches = list(islice(loader, 10))
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(100))
    del loader


def test_classes_cannot_arrive_without_labels() -> None:
    view = View(Digits("train"), range(4), torch.tensor([0, 1, -100, 1]))
    SampleStream(view)
    with pytest.raises(ValueError, match="only if every row has a known label"):
        SampleStream(view, phases=2)
