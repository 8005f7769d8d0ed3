"""Words and glosses of WordNet: classes, ids, splits."""

import pytest
import torch

from kdx.datasets import WordIds, WordNetNouns, WordNetWords
from kdx.datasets.wordnet import read_glosses


@pytest.fixture(scope="module")
def words():
    return {split: WordNetWords(split) for split in ("train", "test")}


@pytest.fixture(scope="module")
def nouns():
    return {split: WordNetNouns(split) for split in ("train", "test")}


def test_words_have_the_documented_shapes_and_types(words):
    train, test = words["train"], words["test"]
    assert (len(train), len(test)) == (6000, 1500)
    assert (train.num_classes, train.input_shape, train.vocabulary) == (34, (64,), 4000)
    ids, target = train[5]
    assert (ids.dtype, ids.shape, target.dtype, target.shape) == (torch.int64, (64,), torch.float32, (34,))
    assert torch.equal(ids, train.ids[5])
    assert torch.equal(target, train.targets[5])
    assert train.targets.unique().tolist() == [0.0, 1.0]
    assert len(train.classes) == len(set(train.classes)) == 34


def test_every_class_of_words_has_a_hundred_training_words_and_some_for_the_test(words):
    assert words["train"].targets.sum(0).min() >= 100
    assert words["test"].targets.sum(0).min() >= 10
    assert words["train"].targets.sum(1).mean() > 2


def test_a_known_word_has_the_classes_of_all_its_senses(words):
    test = words["test"]
    row = test.words.index("abandon")
    classes = {test.classes[k] for k in test.targets[row].nonzero().flatten()}
    assert classes == {"noun.attribute", "noun.feeling", "verb.cognition", "verb.motion", "verb.possession"}
    assert "reckless freedom" in test.texts[row]
    assert "leave someone who needs or counts on you" in test.texts[row]


def test_nouns_have_the_documented_shapes_types_and_classes(nouns):
    train, test = nouns["train"], nouns["test"]
    assert (len(train), len(test)) == (11_124, 3_076)
    assert (train.num_classes, train.input_shape, train.vocabulary) == (25, (24,), 4000)
    ids, label = train[5]
    assert (ids.dtype, ids.shape, type(label)) == (torch.int64, (24,), int)
    assert train.targets.bincount().min() >= 1
    assert (test.texts[0], test.classes[test[0][1]]) == ("cakewalk: an easy accomplishment", "act")


def test_no_sense_and_no_word_is_in_both_splits(words, nouns):
    assert not set(words["train"].words) & set(words["test"].words)
    train, test = read_glosses("train"), read_glosses("test")
    senses = [set(zip(found.glosses, found.lexicographers, strict=True)) for found in (train, test)]
    assert len(senses[0] & senses[1]) <= 5  # a few senses of WordNet are explained by the same words
    assert not set(nouns["train"].texts) & set(nouns["test"].texts)


def test_both_splits_number_words_alike(words):
    train, test = words["train"], words["test"]
    common = train.ids[(train.ids > 1)].bincount().argmax()
    assert common == 2  # the commonest word
    known = WordIds(train.texts, vocabulary=4000, length=64)
    assert torch.equal(known(test.texts), test.ids)


def test_ids_count_from_the_commonest_word_and_cut_and_pad():
    ids = WordIds(["b a", "a; C b", "a"], vocabulary=5, length=3)
    assert (ids.number, ids.vocabulary) == ({"a": 2, "b": 3, "c": 4}, 5)
    assert ids(["A b-c", "zebra", "", "a a a a"]).tolist() == [[2, 3, 4], [1, 0, 0], [0, 0, 0], [2, 2, 2]]
    assert WordIds(["b a", "a"], vocabulary=3, length=1)(["b a"]).tolist() == [[1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "split must be 'train' or 'test'; got 'valid'"),
        ({"vocabulary": 2}, "vocabulary must be 3 or more.*got vocabulary=2"),
        ({"length": 0}, "length 1 or more; got.*length=0"),
    ],
)
@pytest.mark.parametrize("dataset", [WordNetNouns, WordNetWords])
def test_errors_say_what_is_wrong(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        dataset(**options)
