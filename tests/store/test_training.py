"""Training from a store: the same views, no teacher, exact resuming."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

import kdx
from kdx.datasets import View
from kdx.errors import CaptureError, Interrupted, StoreError
from kdx.store import write_store
from kdx.teachers import Frozen, Stored, Teacher
from tests.stopping import Stop


class Seen(torch.utils.data.Dataset):
    """Rows of another data set, with what went out of it."""

    def __init__(self, inner: View) -> None:
        self.inner, self.indices, self.log = inner, inner.indices, {}

    def __len__(self) -> int:
        return len(self.inner)

    def set_epoch(self, epoch: int) -> None:
        self.inner.set_epoch(epoch)
        self.epoch = epoch

    def __getitems__(self, positions):
        items = self.inner.__getitems__(positions)
        for item in items:
            self.log.setdefault((self.epoch, item.index), item.inputs)
        return items


def distil(net, teacher: Teacher) -> kdx.Offline:
    return kdx.Offline(net(seed=9), teacher, task=None, knowledge={"kd": kdx.SoftTargets(4.0)})


def loader(view) -> DataLoader:
    return DataLoader(view, 8, shuffle=True)


def weights(scheme) -> list[torch.Tensor]:
    return [value.clone() for value in scheme.student.state_dict().values()]


def test_the_student_sees_the_pixels_that_the_teacher_saw_in_every_epoch(tmp_path, teacher, view, make_net) -> None:
    writing = Seen(view)
    write_store(tmp_path, teacher, writing, views=3)
    training = Seen(view)
    kdx.fit(distil(make_net, Stored(tmp_path)), loader(training), epochs=7, device="cpu")
    assert len(training.log) == 7 * 32
    for (epoch, row), pixels in training.log.items():
        assert pixels.equal(writing.log[epoch % 3, row])
    first, second = (torch.stack([writing.log[epoch, row] for row in range(5, 37)]) for epoch in (0, 1))
    assert not first.equal(second)


def test_no_epoch_costs_a_forward_pass_of_the_teacher_and_the_student_learns_the_same(
    tmp_path, teacher, view, make_net
) -> None:
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    write_store(tmp_path, teacher, view, views=3, dtype="fp32")
    assert calls
    written = len(calls)
    trained = {}
    for name, source in (("cached", Stored(tmp_path, teacher=teacher, data=view)), ("live", Frozen(teacher))):
        scheme = distil(make_net, source)
        kdx.fit(scheme, loader(view), epochs=4, device="cpu", seed=0)
        trained[name] = weights(scheme)
        if name == "cached":
            assert len(calls) == written
    for cached, live in zip(trained["cached"], trained["live"], strict=True):
        torch.testing.assert_close(cached, live, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["topk:3@4", "sample:32@4", "logits"])
def test_every_form_of_logits_teaches(tmp_path, teacher, view, make_net, what: str) -> None:
    write_store(tmp_path, teacher, view, what=what, views=3)
    scheme = distil(make_net, Stored(tmp_path))
    batches = list(loader(view))
    before = sum(distil(make_net, Frozen(teacher)).eval()(batch).total.item() for batch in batches)
    kdx.fit(scheme, loader(view), epochs=12, device="cpu", optimizer={"name": "AdamW", "lr": 1e-2})
    live = kdx.Offline(scheme.student, Frozen(teacher), task=None, knowledge={"kd": kdx.SoftTargets(4.0)}).eval()
    assert sum(live(batch).total.item() for batch in batches) < 0.5 * before


def test_a_run_resumed_amid_an_epoch_ends_as_an_unbroken_one(tmp_path, teacher, view, make_net) -> None:
    write_store(tmp_path / "store", teacher, view, views=3)

    def run(folder: str, **options) -> list[torch.Tensor]:
        torch.manual_seed(0)
        scheme = distil(make_net, Stored(tmp_path / "store"))
        kdx.fit(scheme, loader(view), epochs=5, device="cpu", folder=tmp_path / folder, **options)
        return weights(scheme)

    whole = run("whole")
    with pytest.raises(Interrupted):
        run("part", observers=[Stop(18)])  # in epoch 4, whose view is 1
    torch.manual_seed(77)
    resumed = run("part", resume=True)
    assert all(a.equal(b) for a, b in zip(whole, resumed, strict=True))


@pytest.mark.parametrize(
    "change",
    [lambda make: make(3, seed=1), lambda make: make(3, shift=2), lambda make: make(None)],
    ids=["seed", "shift", "endless views"],
)
def test_other_pixels_than_the_teachers_stop_the_training_although_nobody_declared_them(
    tmp_path, teacher, view, make_view, make_net, change
) -> None:
    write_store(tmp_path, teacher, view, views=3)
    with pytest.raises(StoreError, match=r"other inputs than the teacher saw: sample \d+ in view \d of 3"):
        kdx.fit(distil(make_net, Stored(tmp_path)), loader(change(make_view)), epochs=4, device="cpu")


def test_a_stored_teacher_is_in_no_checkpoint_but_for_its_view_and_has_no_parameters(tmp_path, teacher, view) -> None:
    stored = Stored(write_store(tmp_path, teacher, view, views=3))
    assert not list(stored.parameters())
    assert set(stored.state_dict()) == {"view"}


def test_a_tap_that_was_not_stored_is_an_error_when_the_scheme_is_built(tmp_path, teacher, view, make_net) -> None:
    stored = Stored(write_store(tmp_path, teacher, view, what=["logits", "features:norm"], views=3))
    hint = kdx.Hint(student="norm", teacher="conv")
    with pytest.raises(CaptureError, match=r"'conv' is not in the store .* holds logits, norm; .*--what features:conv"):
        kdx.Offline(make_net(), stored, knowledge={"hint": hint})
    kdx.Offline(make_net(), stored, knowledge={"hint": kdx.Hint(student="norm", teacher="norm")})


def test_a_batch_without_index_is_an_error(tmp_path, teacher, view, make_net) -> None:
    scheme = distil(make_net, Stored(write_store(tmp_path, teacher, view, views=3)))
    with pytest.raises(ValueError, match=r"a stored teacher needs batch\.index"):
        scheme((torch.zeros(2, 1, 6, 6), torch.zeros(2, dtype=torch.int64)))


def test_adapters_are_set_up_on_the_first_view_whatever_epoch_the_data_are_in(
    tmp_path, teacher, view, make_net
) -> None:
    store = write_store(tmp_path, teacher, view, what=["logits", "features:norm"], views=3)
    view.set_epoch(2)  # where an earlier run left it
    knowledge = {"hint": kdx.Hint(student="norm", teacher="norm")}
    scheme = kdx.Offline(make_net(seed=9), Stored(store), knowledge=knowledge)
    assert kdx.fit(scheme, loader(view), epochs=2, device="cpu").step == 8
