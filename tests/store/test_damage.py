"""Files of a store that were cut short, went missing or changed after they were written."""

from __future__ import annotations

import hashlib
import os

import pytest
import torch

from kdx.errors import StoreError
from kdx.files import read_json, write_json
from kdx.store import Store, write_store
from tests.store.conftest import contents_of


def test_a_shard_cut_short_or_gone_is_noticed_on_opening_and_written_again(tmp_path, teacher, view) -> None:
    options = {"views": 3, "batch_size": 8, "shard_rows": 16}
    write_store(tmp_path, teacher, view, **options)
    whole = contents_of(tmp_path)
    shard = tmp_path / "shard-00001.safetensors"
    for damage, message in (
        (lambda: os.truncate(shard, 200), "has 200 bytes instead of"),
        (shard.unlink, "is missing"),
    ):
        damage()
        with pytest.raises(StoreError, match=f"shard-00001.safetensors {message}.* rewrites damaged shards"):
            Store(tmp_path)
        write_store(tmp_path, teacher, view, **options)
        assert contents_of(tmp_path) == whole


def test_verify_finds_a_flipped_bit(tmp_path, teacher, view) -> None:
    store = write_store(tmp_path, teacher, view, views=3, batch_size=8, shard_rows=16)
    assert store.verify() == 7
    shard = tmp_path / "shard-00004.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"is damaged: shard-00004.safetensors not as written; remove those files"):
        Store(tmp_path).verify()


def test_a_flipped_bit_is_found_when_its_shard_is_first_opened(tmp_path, teacher, view) -> None:
    options = {"views": 3, "batch_size": 8, "shard_rows": 16}
    write_store(tmp_path, teacher, view, **options)
    whole = contents_of(tmp_path)
    message = r"{} is damaged: not as written; remove it and run the same kdx cache again, it writes it anew"
    for shard, ask in (
        ("shard-00004.safetensors", lambda: Store(tmp_path).read(torch.tensor([7]), 2)),
        ("shard-00004.safetensors", lambda: Store(tmp_path).digests(torch.tensor([7]), 2)),
        ("shard-00000.safetensors", lambda: write_store(tmp_path, teacher, view, **options)),
    ):
        data = bytearray(whole[shard])
        data[-1] ^= 1  # in the numbers: no header, no length tells
        (tmp_path / shard).write_bytes(data)
        with pytest.raises(StoreError, match=message.format(shard)):
            ask()
        (tmp_path / shard).unlink()
        write_store(tmp_path, teacher, view, **options)
        assert contents_of(tmp_path) == whole
    store = Store(tmp_path)
    (tmp_path / "shard-00004.safetensors").unlink()
    with pytest.raises(StoreError, match=r"shard-00004.safetensors cannot be read .*kdx cache --verify"):
        store.read(torch.tensor([7]), 2)


def test_a_damaged_index_or_header_is_a_store_error_that_names_the_file(tmp_path, teacher, view) -> None:
    write_store(tmp_path, teacher, view)
    index, shard = tmp_path / "index.safetensors", tmp_path / "shard-00000.safetensors"
    whole = index.read_bytes()
    index.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # of the right length: another row number
    with pytest.raises(StoreError, match=r"index.safetensors is damaged: not as written; remove it"):
        Store(tmp_path)
    index.write_bytes(whole)
    shard.write_bytes((2).to_bytes(8, "little") + b"[]" + shard.read_bytes()[10:])
    with pytest.raises(StoreError, match=r"shard-00000.safetensors is damaged: not as written; remove it"):
        Store(tmp_path).read(torch.tensor([7]))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "shard-00000.safetensors/../../secret", ".lock", ""])
def test_a_manifest_names_no_file_elsewhere(tmp_path, teacher, view, name: str) -> None:
    write_store(tmp_path / "store", teacher, view, what="topk:3")
    path = tmp_path / "store" / "manifest.json"
    values = read_json(path, "")
    (tmp_path / "secret").write_text("secret")
    values["files"][name] = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    write_json(path, values)  # with a checksum that fits, as anyone can write it
    for read in (Store, lambda folder: write_store(folder, teacher, view, what="topk:3")):
        with pytest.raises(StoreError, match=f"is damaged .no store has a file {name!r}"):
            read(tmp_path / "store")
