"""Documents as rows of tokens: packing, positions, labels, bytes, splits, tokenizers."""

import itertools
import json

import pytest
import torch
from kdx_text.language_tokenizers import language_tokenizer, train_tokenizer
from kdx_text.token_stream import TokenStream
from kdx_text.vocabulary import token_bytes, tokenizer_id
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import kdx
from kdx.datasets import check_dataset

TEXTS = tuple(f"{a} times {b} is {a * b}. Ünd {'so ' * (a % 5)}on." for a in range(2, 12) for b in range(2, 6))


def stream(split="train", **options) -> TokenStream:
    return TokenStream(split, **({"documents": TEXTS, "vocabulary": 300, "length": 16} | options))


def read_back(data: TokenStream) -> list[str]:
    """The documents in the rows of packed data."""
    return sorted(filter(None, data.tokenizer.decode(data.ids.flatten()).split("<|endoftext|>")))


def test_packed_rows_hold_every_token_once_with_positions_that_begin_anew() -> None:
    data = stream()
    end = data.tokenizer.eos_token_id
    assert read_back(data) == sorted(set(TEXTS) - set(read_back(stream("test"))))
    inputs, labels = data[1]
    assert list(inputs) == ["input_ids", "position_ids"]
    begins = data.positions.flatten() == 0
    assert bool(begins[::16].all())  # every row
    after = torch.cat([torch.tensor([True]), data.ids.flatten()[:-1] == end])
    filled = (data.targets.flatten() == -100) & after & (data.ids.flatten() == end)  # the rest of the last row
    inside = (torch.arange(len(after)) % 16 != 0) & ~filled
    assert torch.equal(begins[inside], after[inside])
    known = data.targets.flatten() != -100
    assert torch.equal(data.targets.flatten()[known], data.ids.flatten()[known])
    assert not known[after].any()
    assert labels.dtype is torch.int64
    step = data.positions[:, 1:] - data.positions[:, :-1]
    assert bool(((step == 1) | (data.positions[:, 1:] == 0)).all())


def test_the_loss_of_packed_rows_is_that_of_the_documents_alone() -> None:
    short = ("one and one", "two", "three is three and three")
    data = stream(documents=(*short, "x" * 3), test=0.25, length=64)
    assert len(data) == 1
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    ).double()
    task = kdx.make("task", "causal-lm")
    inputs, labels = data[0]
    with torch.no_grad():
        found = task(model(**{key: each[None] for key, each in inputs.items()}, use_cache=False).logits, labels[None])
        total, count = 0.0, 0
        ids = data.ids[0][: int((labels != -100).nonzero().max()) + 1]
        starts = [*(data.positions[0] == 0).nonzero().flatten().tolist(), len(ids)]
        for first, last in itertools.pairwise(starts):
            part = ids[first:last][None]
            if part.shape[1] > 1:
                total += float(task(model(part).logits, part)) * (part.shape[1] - 1)
                count += part.shape[1] - 1
    assert count == int(task.count(labels[None]))
    torch.testing.assert_close(float(found), total / count, rtol=1e-9, atol=0)


def test_rows_that_are_not_packed_begin_with_a_document_and_lose_nothing() -> None:
    data = stream(packed=False, length=8)
    assert isinstance(data[0][0], torch.Tensor)
    kept = data.ids[data.targets != -100]
    packed = stream(length=8)
    whole = packed.ids.flatten()
    assert sorted(kept.tolist()) == sorted(whole[: len(kept)].tolist())
    assert int((data.targets != -100).sum()) == len(kept) >= len(packed) * 8 - 8


def test_the_contract_of_a_data_set_holds_and_rows_are_the_same_again() -> None:
    for packed in (True, False):
        check_dataset(stream(packed=packed))
    one, other = stream(), stream(documents=tuple(reversed(TEXTS)))
    assert torch.equal(one.ids, other.ids)
    assert one.tokenizer_id == other.tokenizer_id == stream("test").tokenizer_id
    assert len(stream(limit=3)) == 3


def test_no_document_is_on_both_sides_and_a_text_that_is_there_twice_is_on_one() -> None:
    def texts(split: str) -> set[str]:
        return set(read_back(stream(split, documents=(*TEXTS, *TEXTS[:20]), test=0.25)))

    train, test = texts("train"), texts("test")
    assert not train & test
    assert train | test == set(TEXTS)
    assert len(test) == 10


def test_bytes_of_tokens_add_up_to_those_of_the_texts() -> None:
    data = stream("test", test=0.25)
    texts = read_back(data)
    sizes = torch.tensor(data.token_bytes)
    assert int(sizes[data.ids].sum()) == sum(len(text.encode()) for text in texts)
    assert sizes[data.tokenizer.eos_token_id] == 0


def test_tokens_that_do_not_keep_the_bytes_have_no_sizes(tmp_path) -> None:
    made = Tokenizer(
        models.BPE({"<e>": 0, **{letter: n for n, letter in enumerate(pre_tokenizers.ByteLevel.alphabet(), 1)}}, [])
    )
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    made.save(str(tmp_path / "tokenizer.json"))
    assert stream(tokenizer=tmp_path / "tokenizer.json").token_bytes is None  # a space before each text
    word = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    assert token_bytes(word) is None


def test_bytes_that_a_token_falls_back_to_are_counted_as_one() -> None:
    made = Tokenizer(models.BPE({"\u2581a": 0, "b": 1, "<0x0A>": 2, "é": 3}, [], byte_fallback=True))
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    assert token_bytes(PreTrainedTokenizerFast(tokenizer_object=made)) == [2, 1, 1, 2]


def test_a_tokenizer_that_was_saved_is_the_same(tmp_path) -> None:
    data = stream()
    data.save_tokenizer(tmp_path)
    assert tokenizer_id(language_tokenizer(tmp_path)) == data.tokenizer_id
    assert torch.equal(stream(tokenizer=tmp_path).ids, data.ids)
    again = stream(tokenizer=tmp_path / "tokenizer.json")  # a file says nothing of an end
    assert again.tokenizer_id == data.tokenizer_id
    assert data.tokenizer_id != stream(vocabulary=290).tokenizer_id


def test_the_same_texts_train_the_same_tokenizer_in_every_process() -> None:
    assert tokenizer_id(train_tokenizer(TEXTS, 300)) == "9f365e521d8cd87a"


def test_files_are_documents_in_folders_lines_and_parts(tmp_path) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    (tmp_path / "one.md").write_text("\n\n".join(TEXTS))
    expected = stream().ids
    assert torch.equal(stream(documents=tmp_path).ids, expected)
    assert torch.equal(stream(documents=tmp_path / "rows.jsonl", text="body").ids, expected)
    assert torch.equal(stream(documents=tmp_path / "one.md", separator="\n\n").ids, expected)
    held = stream("test", documents=tmp_path / "rows.jsonl", text="body", test=tmp_path / "rows.jsonl")
    assert len(held) == len(stream(documents=tmp_path, test=tmp_path / "0.txt"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"documents": ("one",)}, ValueError, "leaves none for training; give more documents, a separator"),
        ({"documents": ("", " ")}, ValueError, "expected a text at least"),
        ({"test": 1.0}, ValueError, "between 0 and 1, got 1.0"),
        ({"length": 1}, ValueError, "length must be at least 2 tokens, got 1"),
        ({"limit": 0}, ValueError, "limit must be 1 or more"),
        ({"vocabulary": 256}, ValueError, "vocabulary must be 257 or more"),
        ({"split": "validation"}, ValueError, "split must be 'train' or 'test', got 'validation'"),
        ({"tokenizer": "nowhere"}, FileNotFoundError, "tokenizer: there is nothing at 'nowhere'"),
    ],
)
def test_what_cannot_be_is_said(options, error, message) -> None:
    with pytest.raises(error, match=message):
        stream(**options)


def test_a_file_that_is_no_text_is_named(tmp_path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8"):
        stream(documents=tmp_path)
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n{"body": 1}\n')
    with pytest.raises(ValueError, match=r"b\.jsonl, line 2: no text 'text' among \['body'\]"):
        stream(documents=tmp_path / "b.jsonl")
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        stream(documents=tmp_path / "nowhere")
