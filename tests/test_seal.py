"""Checksums inside files: every flipped bit shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdx.errors import DamagedError, FileError
from kdx.files import read_json, write_json
from kdx.seal import read_sealed_text, seal_text
from kdx.training.checkpoint import load_tensors, save_tensors


def flips(data: bytes, step: int = 1):
    """The file with one bit flipped, for every ``step``-th byte."""
    for place in range(0, len(data), step):
        yield data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]


def loads(data: bytes):
    """The value of a JSON text, None for what is none."""
    try:
        return json.loads(data)
    except ValueError:
        return None


TENSORS = {"w": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16), "n": torch.tensor(7)}


def test_a_flipped_bit_anywhere_in_weights_is_found_in_a_run(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_tensors(TENSORS, path)
    found = load_tensors(path, sealed=True)
    assert found.keys() == TENSORS.keys()
    assert all(found[name].equal(value) and found[name].dtype == value.dtype for name, value in TENSORS.items())
    assert load_file(path).keys() == TENSORS.keys()  # for any other program an ordinary file
    for sealed in (True, False):
        for damaged in flips(path.read_bytes()):
            other = tmp_path / "other.safetensors"
            other.write_bytes(damaged)
            with pytest.raises(
                DamagedError, match=r"other.safetensors is damaged: .*; (remove the folder|get it again)"
            ):
                load_tensors(other, sealed=sealed)


def test_weights_of_another_program_need_no_checksum_but_in_the_folder_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    for metadata in ({}, {"format": "pt"}):
        save_file(TENSORS, path, metadata)
        assert load_tensors(path).keys() == TENSORS.keys()
        with pytest.raises(DamagedError, match=r"checksum is missing or another; remove the folder .* and resume"):
            load_tensors(path, sealed=True)
    for junk in (b"", b"\x00" * 100, b"\xff" * 100, path.read_bytes()[:-1], b"PK\x03\x04" + b"x" * 50):
        path.write_bytes(junk)
        with pytest.raises(DamagedError, match=r"student.safetensors is damaged"):
            load_tensors(path)
    path.unlink()
    with pytest.raises(FileError, match=r"student.safetensors cannot be read \(No such file"):
        load_tensors(path)


def test_a_flipped_bit_in_a_json_file_changes_no_value_unnoticed(tmp_path: Path) -> None:
    path, value = tmp_path / "result.json", {"test": {"accuracy": 0.25}, "steps": 12, "name": "é", "none": None}
    write_json(path, value)
    assert read_json(path, "do that", test=dict, steps=int) == value
    whole, harmless = path.read_bytes(), 0
    for damaged in flips(whole):
        path.write_bytes(damaged)
        if loads(damaged) == loads(whole):  # a space became another one, or a letter its capital in an escape
            harmless += 1
            continue
        with pytest.raises(DamagedError, match=r"result.json is damaged: .*; do that"):
            read_json(path, "do that")
    assert harmless < 5
    for junk in (b"", b"[" * 100_000, b"[1]", b"\xff\xfe", whole[:-9]):
        path.write_bytes(junk)
        with pytest.raises(DamagedError, match="do that"):
            read_json(path, "do that")
    path.write_bytes(whole)
    with pytest.raises(DamagedError, match="of another version of kdx: steps is missing or of another type"):
        read_json(path, "do that", steps=str)
    with pytest.raises(FileError, match=r"cannot be read \(Is a directory\); there is a folder of this name"):
        read_json(tmp_path, "do that")


def test_a_flipped_bit_in_a_sealed_text_is_found_and_so_is_an_edit(tmp_path: Path) -> None:
    path, text = tmp_path / "recipe.yaml", "seed: 1\nsummary: für alle\n"
    path.write_text(seal_text(text))
    assert read_sealed_text(path, "do that").startswith(text)
    whole = path.read_bytes()
    others = [whole.replace(b"seed: 1", b"seed: 2"), whole + b"\n", text.encode(), b"", whole[:-1]]
    for damaged in (*flips(whole), *others):
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=r"recipe.yaml is not as kdx wrote it: .*; do that"):
            read_sealed_text(path, "do that")
