"""The folder: random access, resuming after a kill, another teacher, other data."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from kdx.batch import Batch
from kdx.datasets import View
from kdx.errors import InUseError, StoreError
from kdx.files import read_json, write_json
from kdx.layout import Layout, UnknownLayout
from kdx.lock import sole_writer
from kdx.store import Store, write_store
from kdx.store.fingerprint import teacher_hash
from kdx.teachers import Ensemble, Stored
from tests.store.conftest import contents_of

ROOT = Path(__file__).parents[2]


def said(teacher, view, epoch: int, positions: list[int]):
    """The teacher's own outputs."""
    view.set_epoch(epoch)
    batch = Batch(*default_collate(view.__getitems__(positions)))
    with torch.no_grad():
        return batch, teacher.eval()(batch.inputs)


@pytest.mark.parametrize(("dtype", "rtol"), [("fp32", 1e-6), ("fp16", 2.0**-10), ("bf16", 2.0**-7)])
def test_any_samples_in_any_order_are_what_the_teacher_says(tmp_path, teacher, view, dtype: str, rtol: float) -> None:
    what = ["logits", "features:norm", "features:r?lu"]
    store = write_store(tmp_path / "s", teacher, view, what=what, views=3, dtype=dtype, batch_size=5, shard_rows=8)
    assert store.manifest.shard_rows == 10  # whole batches
    generator = torch.Generator().manual_seed(1)
    for epoch in (2, 0, 1):
        positions = torch.randperm(32, generator=generator)[:13].tolist()
        batch, logits = said(teacher, view, epoch, positions)
        captured = store.read(batch.index, epoch)
        assert batch.index.tolist() == [position + 5 for position in positions]
        torch.testing.assert_close(captured.logits, logits, rtol=rtol, atol=1e-6)
        norm = teacher.norm(teacher.conv(batch.inputs)).detach()
        torch.testing.assert_close(captured["norm"], norm, rtol=rtol, atol=1e-6)
        assert captured.select("r?lu")[0].equal(captured["norm"].relu())


def test_the_store_of_a_dense_teacher_knows_its_class_axis(tmp_path, view) -> None:
    dense = nn.Conv2d(1, 7, 3)
    batch, logits = said(dense, view, 0, [3, 0])
    for name, options in (("by its shape", {}), ("as written", {"class_dim": 1})):
        store = write_store(tmp_path / name, dense, view, what="topk:7", dtype="fp32", **options)
        assert store.manifest.classes == 7
        torch.testing.assert_close(Store(tmp_path / name).read(batch.index).logits, logits)
    with pytest.raises(StoreError, match="class_dim: stored 1, here None"):
        write_store(tmp_path / "as written", dense, view, what="topk:7", dtype="fp32")


def test_a_batch_reads_its_own_rows_and_not_the_store(tmp_path, teacher, view, monkeypatch) -> None:
    store = write_store(tmp_path, teacher, view, views=3, batch_size=4, shard_rows=4)
    store.read(torch.tensor([5, 6, 8]), 1)
    assert set(store._shards) == {8}  # of 24
    size = max(values.size for values, _ in store._shards[8].values())
    assert size == 4 * 7


def test_writing_leaves_the_teacher_and_the_random_state_alone(tmp_path, teacher, view) -> None:
    teacher.train()
    teacher.norm.eval()
    before, state = teacher_hash(teacher), torch.get_rng_state()
    write_store(tmp_path, teacher, view, what="sample:4", views=2)
    assert teacher_hash(teacher) == before
    assert torch.get_rng_state().equal(state)
    assert teacher.training
    assert not teacher.norm.training
    assert not teacher.conv._forward_hooks
    assert view.epoch == 0


def test_killed_amid_writing_it_goes_on_and_ends_as_one_written_in_one_go(tmp_path, teacher, view) -> None:
    code = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "store")!r}]
from conftest import classifier, images_view
from kdx.store import write_store, writer
plain = writer._write_file
def dying(folder, manifest, name, data):
    if name == "shard-00003.safetensors":
        (folder / f".{{name}}.1.tmp").write_bytes(data[:100])
        os.kill(os.getpid(), signal.SIGKILL)
    plain(folder, manifest, name, data)
writer._write_file = dying
folder, options = {str(tmp_path / "killed")!r}, dict(what="sample:6", views=3, batch_size=8, shard_rows=16)
write_store(folder, classifier(), images_view(), **options)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(StoreError, match="is incomplete: 3 of 6 shards are written; run the same kdx cache again"):
        Store(tmp_path / "killed")
    kept = os.stat(tmp_path / "killed" / "shard-00002.safetensors").st_mtime_ns
    told = []
    for name in ("killed", "whole"):
        options = {"what": "sample:6", "views": 3, "batch_size": 8, "shard_rows": 16}
        write_store(tmp_path / name, teacher, view, **options, progress=lambda done, total: told.append((done, total)))
    assert told[0] == (3, 6)
    assert os.stat(tmp_path / "killed" / "shard-00002.safetensors").st_mtime_ns == kept
    assert contents_of(tmp_path / "killed") == contents_of(tmp_path / "whole")


class Killed(BaseException):
    """The process is gone: no clean-up touches a file any more."""


def killed_at(monkeypatch, step: int) -> list[int]:
    """Ends the writing before a write, amid it, or between it and its renaming; returns the steps done."""
    done = [0]

    def tick() -> None:
        if done[0] == step:
            raise Killed
        done[0] += 1

    def dying(plain, half: bool):
        def call(path: Path, *arguments, **options):
            tick()
            try:
                tick()
            except Killed:
                if half:
                    plain(path, arguments[0][: len(arguments[0]) // 2])
                raise
            return plain(path, *arguments, **options)

        return call

    for name in ("write_bytes", "write_text"):
        monkeypatch.setattr(Path, name, dying(getattr(Path, name), half=True))
    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, dying(getattr(Path, name), half=False))
    return done


@pytest.mark.slow
def test_killed_at_any_write_it_goes_on_and_ends_as_one_written_in_one_go(tmp_path, teacher, view, monkeypatch) -> None:
    options = {"views": 2, "batch_size": 8, "shard_rows": 16}
    with monkeypatch.context() as patch:
        steps = killed_at(patch, sys.maxsize)
        write_store(tmp_path / "whole", teacher, view, **options)
    whole = contents_of(tmp_path / "whole")
    assert steps[0] == 4 * (1 + 2 * 5)  # a manifest, then one after each of five files
    for step in range(steps[0]):
        folder = tmp_path / f"killed-{step}"
        with monkeypatch.context() as patch:
            killed_at(patch, step)
            with pytest.raises(Killed):
                write_store(folder, teacher, view, **options)
        with pytest.raises(StoreError, match=r"holds no teacher store|is incomplete: . of 4 shards"):
            Store(folder)
        write_store(folder, teacher, view, **options)
        assert contents_of(folder) == whole, step


def test_a_second_writer_of_a_folder_is_refused_and_the_first_ends_undisturbed(
    tmp_path, teacher, view, make_net, make_view
) -> None:
    options = {"views": 3, "batch_size": 8, "shard_rows": 16}
    folder, refused = tmp_path / "both", []

    def second(done: int, total: int) -> None:
        if 0 < done < total:
            with pytest.raises(InUseError, match=rf"both is being written by process {os.getpid()} on .* since 2"):
                write_store(folder, make_net(), make_view(), **options)
            refused.append(done)

    write_store(folder, teacher, view, progress=second, **options)
    assert refused == [1, 2, 3, 4, 5]
    write_store(tmp_path / "alone", teacher, view, **options)
    assert contents_of(folder) == contents_of(tmp_path / "alone")
    with sole_writer(folder):  # a store that is complete is only opened
        assert write_store(folder, teacher, view, **options).verify() == 7


def test_a_full_disk_is_a_clear_error_that_loses_nothing(tmp_path, teacher, view, monkeypatch) -> None:
    plain, written = Path.write_bytes, []

    def full(path: Path, data: bytes) -> int:
        if "shard" in path.name and len(written) == 2:
            plain(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path.name)
        return plain(path, data)

    options = {"views": 3, "batch_size": 8, "shard_rows": 16}
    written.append("index")
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "write_bytes", lambda path, data: full(path, data) if "shard" in path.name else plain(path, data)
        )
        with pytest.raises(StoreError, match=r"no space left .* after 1 of 6 shards, which are kept; free some space"):
            write_store(tmp_path / "s", teacher, view, **options)
    assert {path.name for path in (tmp_path / "s").iterdir()} == {
        "manifest.json",
        "index.safetensors",
        "shard-00000.safetensors",
    }
    write_store(tmp_path / "s", teacher, view, **options)
    write_store(tmp_path / "t", teacher, view, **options)
    assert contents_of(tmp_path / "s") == contents_of(tmp_path / "t")


class Times:
    """A transform whose settings the manifest does not hold."""

    def __init__(self, *factors: float) -> None:
        self.factors = factors

    def __call__(self, inputs: torch.Tensor, index: torch.Tensor, epoch: int) -> torch.Tensor:
        return inputs * self.factors[0]


@pytest.mark.parametrize("finished", [True, False])
def test_other_inputs_than_those_stored_are_refused_although_the_manifest_cannot_tell(
    tmp_path, teacher, view, finished: bool
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 1 and not finished:
            raise KeyboardInterrupt

    once = View(view.dataset, view.indices, transform=Times(1.0))
    options = {"batch_size": 8, "shard_rows": 8}
    with contextlib.nullcontext() if finished else pytest.raises(KeyboardInterrupt):
        write_store(tmp_path, teacher, once, progress=stop, **options)
    before = contents_of(tmp_path)
    with pytest.raises(StoreError, match=r"holds another store \(its teacher saw another input as sample 5"):
        write_store(tmp_path, teacher, View(view.dataset, view.indices, transform=Times(3.0)), **options)
    assert contents_of(tmp_path) == before
    assert write_store(tmp_path, teacher, once, batch_size=16, shard_rows=8).verify() == 5


def test_a_tap_that_has_no_samples_along_its_first_dimension_is_refused(tmp_path, teacher, view) -> None:
    class TokensFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.fc = nn.Identity(), nn.Linear(36, 7)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.fc(self.tokens(images.flatten(1).T).T)  # 36 tokens, more than there are samples

    message = r"features:tokens: 'tokens' has shape \[36, 32\] for a batch of 32"
    with pytest.raises(StoreError, match=message):
        write_store(tmp_path, TokensFirst(), view, what=["logits", "features:tokens"])
    assert not list(tmp_path.iterdir())


def test_another_format_is_an_error_that_names_both(tmp_path, teacher, view) -> None:
    write_store(tmp_path, teacher, view)
    manifest = read_json(tmp_path / "manifest.json", "")
    for format, message in ((99, "has format 99, this kdx reads 1"), (None, "has format None")):
        write_json(tmp_path / "manifest.json", manifest | {"format": format})
        with pytest.raises(StoreError, match=message):
            Store(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"manifest.json is damaged: it is not the JSON that kdx wrote; remove"):
        Store(tmp_path)
    with pytest.raises(StoreError, match="holds no teacher store"):
        Store(tmp_path / "nowhere")


def test_a_folder_with_another_store_is_never_written_into(tmp_path, teacher, view, make_net, make_view) -> None:
    write_store(tmp_path, teacher, view, views=2)
    before = contents_of(tmp_path)
    for changed, message in (
        ((make_net(seed=6), view, {}), r"teacher.hash: stored \w{12}, here \w{12}"),
        ((teacher, make_view(shift=2), {}), r"data.transform: stored ShiftFlip\(shift=1.*, here ShiftFlip\(shift=2"),
        ((teacher, make_view(rows=range(4, 36)), {}), "rows: stored others than those of the data"),
        ((teacher, view, {"what": "topk:2"}), r"what: stored \['logits'\], here \['topk:2'\]"),
        ((teacher, view, {"dtype": "bf16"}), "dtype: stored fp16, here bf16"),
        ((teacher, view, {"views": 3}), "views: stored 2, here 3"),
    ):
        model, data, options = changed
        with pytest.raises(StoreError, match=f"holds another store .*{message}"):
            write_store(tmp_path, model, data, **({"views": 2} | options))
    assert contents_of(tmp_path) == before


def test_a_store_of_another_teacher_or_other_data_is_refused_with_what_differs(
    tmp_path, teacher, view, make_net, make_view
) -> None:
    write_store(tmp_path, teacher, view, views=3, origin={"seed": "0"})
    Stored(tmp_path, teacher=teacher, data=view, origin={"seed": "0"})
    finetuned = make_net()
    finetuned.fc.bias.data[0] += 1e-3
    for options, message in (
        ({"teacher": finetuned}, "teacher: stored another Sequential, with other weights or layers"),
        ({"data": make_view(seed=1)}, r"data.transform: stored .*seed=0\), here .*seed=1"),
        ({"data": make_view(None)}, "views: stored 3, the data have new ones in every epoch"),
        ({"data": make_view(4)}, "views: stored 3, the data have 4"),
        ({"origin": {"seed": "1"}}, "data.seed: stored 0, here 1"),
        ({"data": make_view(rows=range(6, 38))}, "sample 37 is not in the store"),
    ):
        with pytest.raises(StoreError, match=message):
            Stored(tmp_path, **options)
    teacher.relu = torch.nn.GELU()  # the same weights in another architecture
    with pytest.raises(StoreError, match="with other weights or layers"):
        Stored(tmp_path, teacher=teacher)


def test_samples_in_another_order_are_still_matched_by_what_they_are(tmp_path, teacher, view, make_view) -> None:
    store = write_store(tmp_path, teacher, view, views=3, dtype="fp32", batch_size=8, shard_rows=16)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(2))
    shuffled = make_view(rows=view.indices[order])
    stored = Stored(store, teacher=teacher, data=shuffled)
    for epoch in (0, 2):
        stored.epoch_start(epoch, 3)
        batch, logits = said(teacher, shuffled, epoch, list(range(32)))
        assert batch.index.tolist() == (order + 5).tolist()
        torch.testing.assert_close(stored(batch).logits, logits, rtol=1e-5, atol=1e-6)
    with pytest.raises(StoreError, match="rows: stored others than those of the data"):
        write_store(tmp_path, teacher, shuffled, views=3, dtype="fp32", batch_size=8, shard_rows=16)


def test_a_data_set_whose_rows_have_moved_is_refused(tmp_path, teacher, view, make_view) -> None:
    write_store(tmp_path, teacher, view, views=3)
    moved = make_view()
    moved.dataset.images = moved.dataset.images.roll(1, 0)  # row numbers stay, images do not
    stored = Stored(tmp_path, teacher=teacher, data=moved)
    batch, _ = said(teacher, moved, 0, list(range(8)))
    with pytest.raises(StoreError, match=r"other inputs than the teacher saw: sample 5 in view 0 .*\(8 of 8 samples"):
        stored(batch)
    with pytest.raises(StoreError, match="its teacher saw another input as sample 5"):
        write_store(tmp_path, teacher, moved, views=3)


def test_bad_arguments_are_errors_that_say_what_to_do(tmp_path, teacher, view) -> None:
    with pytest.raises(ValueError, match="dtype must be one of fp16, bf16, fp32; got 'int8'"):
        write_store(tmp_path, teacher, view, dtype="int8")
    with pytest.raises(ValueError, match="views must be 1 or more, got 0"):
        write_store(tmp_path, teacher, view, views=0)
    with pytest.raises(ValueError, match="views=2 needs data with set_epoch"):
        write_store(tmp_path, teacher, view.dataset, views=2)
    with pytest.raises(ValueError, match="give each sample its index"):
        write_store(tmp_path, teacher, view.dataset)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file is a file; a store is a folder"):
        write_store(tmp_path / "file", teacher, view)


@pytest.mark.parametrize("index", [torch.empty(0, dtype=torch.int64), torch.tensor(7), torch.tensor([[7, 8]])])
def test_an_index_that_is_no_list_of_samples_is_a_store_error(tmp_path, teacher, view, index: torch.Tensor) -> None:
    store = write_store(tmp_path, teacher, view)
    message = re.escape(f"index must be int64 [N] with N >= 1, got {list(index.shape)}")
    for ask in (store.read, store.digests, store.positions):
        with pytest.raises(StoreError, match=message):
            ask(index)


def test_a_store_keeps_the_layouts_of_features_and_one_without_them_leaves_them_unknown(
    tmp_path, teacher, view
) -> None:
    index = torch.tensor([7, 30])
    store = write_store(tmp_path, teacher, view, what=["logits", "features:norm", "features:r?lu"])
    assert store.read(index).layouts == {"norm": Layout("nchw"), "relu": Layout("nchw")}
    ensemble = Ensemble({"one": Stored(store), "two": Stored(store)})
    batch = Batch(view_inputs(view, index), index=index)
    assert ensemble(batch).layouts["two/norm"] == Layout("nchw")
    manifest = read_json(tmp_path / "manifest.json", "")
    del manifest["layouts"]
    write_json(tmp_path / "manifest.json", manifest)
    found = Store(tmp_path).read(index).layouts["norm"]
    assert isinstance(found, UnknownLayout)
    assert "which does not say what its axes mean" in found.giver


def view_inputs(view, index: torch.Tensor) -> torch.Tensor:
    rows = view.indices.tolist()
    return torch.stack([view[rows.index(row)].inputs for row in index.tolist()])
