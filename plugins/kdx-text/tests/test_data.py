"""Tokenised data sets: ids, padding, labels, errors."""

import pytest
import torch
from kdx_text.files import TextFiles
from kdx_text.tokens import load_tokenizer
from kdx_text.wordnet import CLASSES, WordNetGlosses, read_nouns

NOUNS = """  1 a line of the licence
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived
02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 001 @ 02083346 n 0000 | a member of the genus Canis
07679356 13 n 02 bread 0 staff_of_life 0 001 @ 07622061 n 0000 | food made from dough
15113229 28 n 02 time_period 0 period 0 001 @ 00033615 n 0000 | an amount of time
"""


def test_texts_become_ids_of_one_length(folder, tokenizer) -> None:
    train = TextFiles("train", folder=folder, tokenizer=tokenizer, length=4)
    loaded = load_tokenizer(tokenizer)
    ids, label = train[1]  # "a dog barks at the cat", cut to four words
    assert ids.tolist() == loaded.convert_tokens_to_ids(["a", "dog", "barks", "at"])
    assert train[0][0].tolist()[3] == train.padding == 0
    assert (label, train.classes, train.num_classes, train.input_shape) == (0, ("animal", "food"), 2, (4,))
    assert len(train) == 64
    assert train.vocabulary == len(loaded)
    assert train.targets.tolist()[:8] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_both_splits_number_classes_alike(folder, tokenizer) -> None:
    test = TextFiles("test", folder=folder, tokenizer=tokenizer)
    assert test[7][1] == 1
    (folder / "test.jsonl").write_text('{"text": "stone", "label": "mineral"}\n')
    with pytest.raises(ValueError, match="label 'mineral' does not occur in the training file"):
        TextFiles("test", folder=folder, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"split": "dev"}, ValueError, "split must be 'train' or 'test', got 'dev'"),
        ({"tokenizer": "nowhere"}, FileNotFoundError, "tokenizer: there is no folder or file 'nowhere'"),
        ({"text": "body"}, ValueError, r"train.csv, row 1: no 'body' among \['label', 'text'\]"),
        ({"folder": "nowhere"}, FileNotFoundError, "'nowhere' has no train.csv, train.tsv or train.jsonl"),
        ({"length": 1}, ValueError, "length must be at least 2 tokens, got 1"),
    ],
)
def test_bad_input_is_named(folder, tokenizer, change, error, message) -> None:
    with pytest.raises(error, match=message):
        TextFiles(**({"split": "train", "folder": folder, "tokenizer": tokenizer} | change))


def test_glosses_come_with_the_class_of_their_file(tmp_path, tokenizer) -> None:
    (tmp_path / "data.noun").write_text(NOUNS)
    rows = read_nouns(tmp_path)
    assert [(text, CLASSES[label]) for _, text, label in rows] == [
        ("dog: a member of the genus Canis", "animal"),
        ("bread: food made from dough", "food"),
        ("time period: an amount of time", "time"),
    ]
    sizes = [len(WordNetGlosses(split, folder=tmp_path, tokenizer=tokenizer)) for split in ("train",)]
    assert sizes == [3]
    assert len(WordNetGlosses("train", folder=tmp_path, tokenizer=tokenizer, limit=2)) == 2


def test_missing_wordnet_is_explained(tmp_path, tokenizer) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no data\.noun; install WordNet"):
        WordNetGlosses(folder=tmp_path, tokenizer=tokenizer)


def test_ids_are_one_integer_tensor(folder, tokenizer) -> None:
    assert TextFiles("train", folder=folder, tokenizer=tokenizer).ids.dtype == torch.int64
