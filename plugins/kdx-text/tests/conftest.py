"""A tokenizer of whole words and a small labelled text set, in files."""

import csv
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

ANIMALS = ["the cat sleeps", "a dog barks at the cat", "birds fly over the dog", "the cat and the dog"]
FOOD = ["bread with butter", "the soup is hot", "butter and soup", "hot bread"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """``tokenizer.json`` of the words in the texts; 0 is padding, 1 an unknown word."""
    words = sorted({word for text in ANIMALS + FOOD for word in text.split()})
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {word: number for number, word in enumerate(words, start=2)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``train.csv`` and ``test.jsonl``."""
    rows = [(text, "animal") for text in ANIMALS] + [(text, "food") for text in FOOD]
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *(rows * 8)])
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"text": t, "label": c}) + "\n" for t, c in rows))
    return tmp_path
