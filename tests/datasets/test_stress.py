"""Words as phones with stresses: known words, void, splits."""

import pytest
import torch

from kdx.datasets import WordStress


@pytest.fixture(scope="module")
def splits():
    return {split: WordStress(split) for split in ("train", "test")}


def test_items_have_the_documented_shapes_and_types(splits):
    train, test = splits["train"], splits["test"]
    assert (len(train), len(test)) == (16_000, 4_000)
    assert (train.num_classes, train.input_shape, train.vocabulary) == (3, (14,), 40)
    ids, target = train[5]
    assert (ids.dtype, ids.shape, target.dtype, target.shape) == (torch.int64, (14,), torch.int64, (14,))
    assert torch.equal(ids, train.ids[5])
    assert torch.equal(target, train.targets[5])
    assert train.ids.max() == 39


def test_a_known_word_has_its_phones_and_stresses(splits):
    data = splits["train"]
    ids, target = data[data.words.index("abandoning")]
    phones = [data.phones[k] for k in ids[ids > 0]]
    assert phones == ["AH", "B", "AE", "N", "D", "AH", "N", "IH", "NG"]
    assert target[ids > 0].tolist() == [0, -100, 1, -100, -100, 0, -100, 0, -100]


@pytest.mark.parametrize("split", ["train", "test"])
def test_vowels_alone_have_a_stress_and_padding_has_none(splits, split):
    data = splits[split]
    vowels = {k for k, phone in enumerate(data.phones) if phone[:1] in set("AEIOU")}
    is_vowel = torch.isin(data.ids, torch.tensor(sorted(vowels)))
    assert torch.equal(data.targets >= 0, is_vowel)
    assert (data.targets[~is_vowel] == -100).all()
    assert is_vowel.sum(1).min() >= 2
    padded = data.ids == 0
    assert torch.equal(padded, padded.cummax(1).values)  # at the end alone


def test_words_that_begin_alike_are_in_one_split(splits):
    begin = {split: {word[:4] for word in data.words} for split, data in splits.items()}
    assert not begin["train"] & begin["test"]


def test_a_wrong_split_is_named():
    with pytest.raises(ValueError, match="split must be 'train' or 'test'; got 'valid'"):
        WordStress("valid")
