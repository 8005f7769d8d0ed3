"""Teacher, average and peers may see other inputs than the student: views of a batch, in scripts and in recipes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import kdx
from kdx.batch import Batch
from kdx.datasets import Digits, SampleStream, ShiftFlip, View
from kdx.errors import RecipeError, StoreError
from kdx.experiment.assembly import Assembly
from kdx.experiment.plan import stages_of
from kdx.experiment.recipe_files import check_recipe
from kdx.schemes import EmaTeacher, SnapshotDistillation
from kdx.store import write_store
from kdx.teachers import Ensemble, Frozen, Live, Stored
from tests.experiment.tiny import TINY

BATCH = Batch(torch.randn(6, 4), torch.arange(6) % 3, torch.arange(6), {"weak": torch.randn(6, 4)})


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(4, 3)


def test_a_batch_takes_its_views_along_wherever_it_goes() -> None:
    half = BATCH.at(slice(3)).to("cpu")
    assert half.views["weak"].equal(BATCH.views["weak"][:3])
    assert half.seen("weak").inputs.equal(BATCH.views["weak"][:3])
    assert half.seen(None) is half
    assert half.seen(lambda batch: -batch.inputs).inputs.equal(-BATCH.inputs[:3])
    assert Batch.of(tuple(BATCH)).views.keys() == {"weak"}
    assert Batch.of({"ids": BATCH.inputs, "labels": BATCH.targets, "views": {"t": BATCH.inputs}}).views.keys() == {"t"}
    with pytest.raises(
        ValueError, match=r"to see the view 'weka', and the batch has the views 'weak'; let the data set"
    ):
        BATCH.seen("weka")
    with pytest.raises(ValueError, match="the batch has no views"):
        Batch(BATCH.inputs).seen("weak")


@pytest.mark.parametrize("view", ["weak", lambda batch: batch.views["weak"]], ids=["name", "function"])
@pytest.mark.parametrize(
    "make",
    [
        lambda model, view: kdx.Offline(linear(), model, teacher_view=view, task=None, knowledge={"mse": mse()}),
        lambda model, view: kdx.Offline(linear(), Frozen(model, view=view), task=None, knowledge={"mse": mse()}),
        lambda model, view: kdx.Offline(
            linear(), Frozen(model, dtype=torch.float64, view=view), task=None, knowledge={"mse": mse()}
        ),
        lambda model, view: kdx.Offline(
            linear(),
            Ensemble({"a": Frozen(model, view=view), "b": Frozen(model, view=view)}),
            task=None,
            knowledge={"mse": mse()},
        ),
    ],
    ids=["offline", "frozen", "frozen in double", "ensemble"],
)
def test_a_frozen_teacher_sees_its_view_and_the_student_the_inputs(make, view) -> None:
    teacher = linear(1)
    student, answer = linear()(BATCH.inputs), teacher(BATCH.views["weak"])
    torch.testing.assert_close(make(teacher, view)(BATCH).terms["mse"], (student - answer).square().mean())


def mse() -> kdx.Knowledge:
    return kdx.make("knowledge", "logits")


def test_averages_snapshots_and_teachers_trained_along_see_their_view() -> None:
    def distance(one, other):
        return (one(BATCH.inputs) - other(BATCH.views["weak"])).square().mean()

    student = linear()
    average = EmaTeacher(student, teacher_view="weak", knowledge={"mse": mse()})
    torch.testing.assert_close(average(BATCH).terms["mse"], distance(student, student))
    snapshot = SnapshotDistillation(student, cycle=1, teacher_view="weak", knowledge={"mse": mse()})
    snapshot.epoch_start(0, 2)
    snapshot.epoch_start(1, 2)
    torch.testing.assert_close(snapshot(BATCH).terms["mse"], distance(student, student))
    teacher = linear(1)
    for online in (
        kdx.make("scheme", "online", student, teacher, teacher_view="weak", knowledge={"mse": mse()}),
        kdx.make("scheme", "online", student, Live(teacher, view="weak"), knowledge={"mse": mse()}),
    ):
        losses = online(BATCH)
        torch.testing.assert_close(losses.terms["mse"], distance(student, teacher))
        own = nn.functional.cross_entropy(teacher(BATCH.views["weak"]), BATCH.targets)
        torch.testing.assert_close(losses.terms["teacher/task"], own)


def test_peers_see_their_views_in_training() -> None:
    one, two = linear(), linear(1)
    mutual = kdx.Mutual([one, two], peer_views=[None, "weak"], task=None, knowledge={"mse": mse()})
    expected = (one(BATCH.inputs) - two(BATCH.views["weak"])).square().mean()
    torch.testing.assert_close(mutual(BATCH).terms["peer0/mse"], expected)
    expected = (one(BATCH.inputs) - two(BATCH.inputs)).square().mean()
    torch.testing.assert_close(mutual.eval()(BATCH).terms["peer0/mse"], expected)
    with pytest.raises(ValueError, match="a view for each of the 2 peers, got 1"):
        kdx.Mutual([one, two], peer_views=["weak"])


class Texts(Dataset):
    """Rows with tokens for the student, and others, of another length, for the teacher."""

    targets = torch.arange(12) % 3

    def __len__(self):
        return 12

    def __getitem__(self, row):
        return Batch(torch.tensor([row, 1]), row % 3, row, {"pieces": {"ids": torch.tensor([row, 2, 3])}})


class Bag(nn.Module):
    """Classes of a bag of tokens."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(12, 3)

    def forward(self, ids):
        return self.table(ids).mean(1)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["loader", "view", "stream"])
def test_two_tokenisations_pass_through_every_loader(kind, workers) -> None:
    seen = []

    class Teacher(Bag):
        def forward(self, ids):
            seen.append(ids)
            return super().forward(ids)

    data = {"loader": Texts(), "view": View(Texts()), "stream": SampleStream(View(Texts()))}[kind]
    scheme = kdx.Offline(Bag(), Teacher(), teacher_view="pieces", knowledge={"kd": kdx.SoftTargets()})
    kdx.fit(scheme, DataLoader(data, 4, num_workers=workers), steps=2, accumulate=2, device="cpu")
    assert {tuple(ids.shape) for ids in seen} == {(4, 3)}
    assert all(ids[:, 1:].equal(torch.tensor([[2, 3]]).expand(4, 2)) for ids in seen)


def test_a_view_of_another_resolution_and_one_without_augmentation() -> None:
    digits = Digits("train")
    half = nn.AvgPool2d(2)
    also = {"weak": None, "small": lambda images, index, epoch: half(images)}
    view = View(digits, range(8), transform=ShiftFlip(2, 0.5), also=also)
    batch = next(iter(DataLoader(view, 8)))
    assert batch.views["weak"].equal(torch.stack([digits[row][0] for row in range(8)]))
    assert not batch.views["weak"].equal(batch.inputs)
    assert batch.views["small"].equal(half(batch.views["weak"]))
    assert next(iter(DataLoader(view.cycling(2), 8))).views.keys() == {"weak", "small"}


def test_a_store_of_one_view_is_refused_by_a_student_of_another(tmp_path) -> None:
    weak = View(Digits("train"), range(8))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    store = write_store(tmp_path / "store", net, weak)
    strong = View(Digits("train"), range(8), transform=ShiftFlip(2, 0.5), also={"weak": None})
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    scheme = kdx.Offline(student, Stored(store), knowledge={"kd": kdx.SoftTargets()})
    with pytest.raises(StoreError, match="the student sees other inputs than the teacher saw"):
        kdx.fit(scheme, DataLoader(strong, 4), device="cpu")


VIEWS = {"dataset": {"name": "digits"}, "validation": 100, "augment": {"shift": 1}, "views": {"weak": {}}}


def test_a_recipe_shows_its_teacher_what_is_not_augmented() -> None:
    recipe = check_recipe({**TINY, "data": VIEWS, "teacher": {**TINY["teacher"], "view": "weak"}})
    assembly = Assembly(recipe, stages_of(recipe), Untrained())
    stage = assembly.stages["distilled"]
    scheme = assembly.scheme(stage)
    batch = next(iter(assembly.training(stage, scheme)))
    plain = torch.stack([Digits("train")[row][0] for row in batch.index.tolist()])
    assert batch.views["weak"].equal(plain)
    assert not batch.inputs.equal(plain)
    assert scheme.teacher(batch).logits.equal(scheme.teacher.model(plain))


class Untrained:
    """A source without trained models."""

    def weights(self, stage):
        return None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"teacher": {**TINY["teacher"], "view": "week"}},
            r"teacher\.view: data\.views has no 'week'; did you mean 'weak'",
        ),
        (
            {"teacher": {**TINY["teacher"], "view": "weak", "store": {}}},
            "store: stored outputs are those for what the stu",
        ),
        (
            {"scheme": {"name": "online"}, "teacher": {"model": {"name": "mlp"}, "view": "weak"}},
            r"teacher\.view: scheme 'online' trains the teacher along .* scheme\.teacher_view=weak",
        ),
        (
            {"scheme": {"name": "mutual", "peer_views": ["weka", None]}, "teacher": None},
            r"scheme\.peer_views: data\.views has no 'weka'; did you mean 'weak'",
        ),
    ],
)
def test_views_that_there_are_not_are_named_in_a_recipe(changes, message) -> None:
    with pytest.raises(RecipeError, match=message):
        check_recipe({**TINY, "data": VIEWS, **changes})
