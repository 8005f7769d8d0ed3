"""The data files in the package: recorded, licensed, small, and the ones that their scripts cut."""

import hashlib
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "kdx" / "data"
FILES = sorted(path.name for path in DATA.glob("*.npz"))
LICENSES = {
    "cmudict.npz": "CMUDICT_LICENSE",
    "electrocardiogram.npz": "MITDB_LICENSE",
    "fashion_mnist.npz": "FASHION_MNIST_LICENSE",
    "wordnet.npz": "WORDNET_LICENSE",
}


def arrays(name):
    with np.load(DATA / name, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def section(name):
    """The part of the README that is about a file."""
    return re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", (DATA / "README.md").read_text(), re.M | re.S)[1]


@pytest.mark.parametrize("name", FILES)
def test_the_readme_tells_of_a_file_its_digest_size_arrays_license_and_sources(tool, name):
    about, blob = section(name), (DATA / name).read_bytes()
    assert f"{hashlib.sha256(blob).hexdigest()}  {name} ({len(blob):,} bytes)" in about
    assert all(f"`{key}`" in about for key in arrays(name))
    assert f"({LICENSES[name]})" in about
    script = tool(f"cut_{name.removesuffix('.npz')}")
    assert all(f"{digest}  {source}" in about for source, digest in script.SHA256.items())
    assert f"tools/cut_{name.removesuffix('.npz')}.py" in about


def test_the_files_are_small_and_packaged_with_their_licenses():
    assert set(FILES) == set(LICENSES)
    assert sum((DATA / name).stat().st_size for name in FILES) < 4_000_000
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert "data/*" in project["tool"]["setuptools"]["package-data"]["kdx"]
    licensed = {path.name for glob in project["project"]["license-files"] for path in REPOSITORY.glob(glob)}
    assert licensed == {"LICENSE", *LICENSES.values()}
    for name, license in LICENSES.items():
        assert name.partition(".")[0].split("_")[0] in (DATA / license).read_text().lower()


@pytest.mark.parametrize("name", FILES)
def test_encoding_the_arrays_again_gives_the_same_bytes(tool, name):
    assert tool("packing").encode(arrays(name)) == (DATA / name).read_bytes()


@pytest.mark.parametrize("name", ["cmudict", "electrocardiogram", "wordnet"])
def test_a_source_with_other_bytes_is_refused(tool, name, tmp_path):
    script = tool(f"cut_{name}")
    for source in script.SHA256:
        (tmp_path / source).write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not the file this subset is cut from"):
        script.cut(tmp_path if name == "wordnet" else tmp_path / source)


def test_test_words_are_chosen_first_and_share_no_sense_with_training_words(tool, monkeypatch):
    script = tool("cut_wordnet")
    monkeypatch.setattr(script, "WORDS", {"test": 2, "train": 3})
    senses = {word: {k, k + 1} for k, word in enumerate(["aa", "bb", "cc", "dd", "ee", "ff", "gg", "hh"])}
    senses |= {"one": {50}, "New_York": {51, 52}, "nine": set(range(60, 69))}
    chosen = script.choose(senses)
    ranked = sorted(
        senses.keys() - {"one", "New_York", "nine"}, key=lambda w: hashlib.sha256(f"2006:{w}".encode()).digest()
    )
    taken = senses[ranked[0]] | senses[ranked[1]]
    assert chosen["test"] == sorted(ranked[:2])
    assert chosen["train"] == sorted([word for word in ranked[2:] if not senses[word] & taken][:3])


def test_words_that_begin_alike_are_in_one_split(tool, monkeypatch):
    script = tool("cut_cmudict")
    words = {
        f"{stem}{end}": ["K", "AE1", "T", "S"] for stem in map(str.lower, ("WALK", "TALK", "SING")) for end in "abc"
    }
    words |= {f"{chr(97 + k)}{chr(97 + j)}xyz": [] for k in range(6) for j in range(6)}
    chosen = script.choose(words)
    assert sorted(chosen["train"] + chosen["test"]) == sorted(words)
    assert chosen["test"]
    assert not {word[:4] for word in chosen["train"]} & {word[:4] for word in chosen["test"]}


def test_glosses_lose_their_examples(tool):
    definition = tool("cut_wordnet").definition
    assert definition('not easily borne; wearing; "the burden"; "a load"') == "not easily borne; wearing"
    assert definition("an animal; ") == "an animal"
