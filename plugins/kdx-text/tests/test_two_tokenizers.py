"""Texts in the tokens of a student and of a teacher with another tokenizer, and distillation from them."""

from __future__ import annotations

from pathlib import Path

import kdx_text.plugin
import pytest
import torch
from kdx_text.language_tokenizers import train_tokenizer
from kdx_text.token_pieces import token_pieces
from kdx_text.two_tokenizers import TwoTokenizers, TwoTokenizerTexts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import kdx
from kdx import Plugins
from kdx.experiment import check_recipe
from kdx.knowledge.functional import token_surprisals

VERSE = [
    "Shall I compare thee to a summer's day?\n",
    "Thou art more lovely and more temperate.\n",
    "Rough winds, naïve ☀\n",
]
CODE = ["for (i = 0; i < 10; i++) {\n", "    print(values[i]);\n", "}\n"]


@pytest.fixture(scope="module")
def tokenizers() -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    return train_tokenizer(VERSE, 300), train_tokenizer([*CODE, *VERSE[:1]], 290)


def begun(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer with a token that begins every text."""
    made = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    made.add_special_tokens(["<s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<|endoftext|>")


@pytest.mark.parametrize("text", [*VERSE, *CODE, "  東京 🙂\t", ""])
def test_the_pieces_of_a_text_are_its_bytes(tokenizers, text):
    for tokenizer in tokenizers:
        pieces = token_pieces(tokenizer)
        ids = tokenizer(text)["input_ids"]
        assert b"".join(pieces[token] for token in ids) == text.encode()
        assert pieces[tokenizer.eos_token_id] == b""
        assert len(pieces) == len(tokenizer)


def test_pieces_of_byte_fallback_and_added_tokens():
    vocabulary = {"<unk>": 0, "<0xE2>": 1, "\u2581the": 2, "s": 3}
    made = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_tokens(["\n\n"])
    pieces = token_pieces(PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>"))
    assert pieces == [b"", b"\xe2", b" the", b"s", b"\n\n"]


def test_word_pieces_are_refused_and_the_side_is_named(tokenizers):
    made = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=made)
    with pytest.raises(
        ValueError, match="the teacher's tokenizer: the tokens of this tokenizer do not say which bytes"
    ):
        TwoTokenizers(tokenizers[0], words)
    with pytest.raises(TypeError, match="the student's tokenizer: expected a fast tokenizer"):
        TwoTokenizers(object(), words)


def spelt(both: TwoTokenizers, ids: torch.Tensor, chunks: torch.Tensor, side: str) -> dict[int, bytes]:
    """The text of every chunk of a row."""
    pieces, found = token_pieces(both.tokenizers[side]), {}
    for token, chunk in zip(ids.tolist(), chunks.tolist(), strict=True):
        if chunk >= 0:
            found[chunk] = found.get(chunk, b"") + pieces[token]
    return found


def test_a_batch_of_texts_prompts_and_conversations(tokenizers):
    both = TwoTokenizers(tokenizers[0], begun(tokenizers[1]))
    for side, template in (
        ("student", "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"),
        ("teacher", "{{ bos_token }}{% for m in messages %}{{ m.content }}\n{% endfor %}> "),
    ):
        both.tokenizers[side].chat_template = template
    rows = [
        VERSE[0],
        ("Q: what? A:", " a summer's day"),
        {"prompt": "say ", "completion": VERSE[2]},
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": CODE[1]}]},
        {"text": CODE[0]},
    ]
    answers = [VERSE[0], " a summer's day", VERSE[2], CODE[1], CODE[0]]
    batch = both(rows)
    lies, teacher = batch.views["alignment"], batch.views["teacher"]
    ends = both.ends
    for row, answer in enumerate(answers):
        ours = spelt(both, batch.inputs["input_ids"][row], lies["student_chunks"][row], "student")
        theirs = spelt(both, teacher["input_ids"][row], lies["teacher_chunks"][row], "teacher")
        assert ours == theirs
        assert b"".join(ours.values()) == answer.encode()
        assert ours[max(ours)] == b""  # the end, a chunk of its own
        for ids, chunks, end in (
            (batch.inputs["input_ids"], lies["student_chunks"], ends[0]),
            (teacher["input_ids"], lies["teacher_chunks"], ends[1]),
        ):
            assert ids[row][chunks[row] == max(ours)].tolist() == [end]
    learned = [[label for label in labels if label >= 0] for labels in batch.targets.tolist()]
    assert [both.tokenizers["student"].decode(each[:-1]) for each in learned] == answers
    prompts = [
        both.tokenizers["teacher"].decode(ids[: (labels >= 0).nonzero()[0]])
        for ids, labels in zip(teacher["input_ids"], lies["teacher_labels"], strict=True)
    ]
    assert prompts == ["<s>", "<s>Q: what? A:", "<s>say ", "<s>hello\n> ", "<s>"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?"}, r"got \['question'\]"),
        (("a", "b", "c"), "got tuple"),
        ({"prompt": "a", "completion": None}, "expected a text"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "no chat template"),
    ],
)
def test_rows_that_are_no_texts_are_refused(tokenizers, row, message):
    made = TwoTokenizers(*(train_tokenizer(VERSE, 300 + k) for k in range(2)))
    with pytest.raises((TypeError, ValueError), match=message):
        made([row])


def test_tokenizers_that_make_other_texts_are_refused(tokenizers):
    made = Tokenizer.from_str(tokenizers[1].backend_tokenizer.to_str())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    both = TwoTokenizers(tokenizers[0], PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>"))
    with pytest.raises(ValueError, match=r"texts that differ from byte 0 on: b'Shall.* and b' Shall"):
        both([VERSE[0]])


def llama(tokens: int, width: int) -> LlamaForCausalLM:
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=tokens, num_attention_heads=2, num_key_value_heads=2, **sizes))


def test_a_llama_learns_from_one_with_another_tokenizer(tokenizers):
    torch.manual_seed(0)
    both = TwoTokenizers(*tokenizers)
    data = DataLoader([*VERSE, *CODE], batch_size=3, collate_fn=both)
    student, teacher = llama(len(tokenizers[0]) + 4, 16), llama(len(tokenizers[1]), 32)
    task = kdx.make("task", "causal-lm")
    knowledge = {"alm": kdx.knowledge.ALM(), "uld": (0.5, kdx.knowledge.ULD())}
    scheme = kdx.Offline(student, kdx.teachers.Frozen(teacher, view="teacher"), task=(0.5, task), knowledge=knowledge)
    batch = both(VERSE)
    before = scheme(batch)
    # by hand: the chunks' likelihoods of both models, but of those with the first token of a row
    lies = batch.views["alignment"]
    surprisals = []
    for model, inputs, labels in (
        (student, batch.inputs, batch.targets),
        (teacher.eval(), batch.views["teacher"], lies["teacher_labels"]),
    ):
        with torch.no_grad():
            surprisals.append(token_surprisals(model(**inputs).logits[:, :-1], labels[:, 1:]))
    numbers = lies["student_chunks"], lies["teacher_chunks"]
    chunks = [(row, k) for row in range(3) for k in range(1, int(numbers[0][row].max()) + 1)]
    ours, theirs = (
        torch.stack([each[row][lie[row, 1:] == k].sum() for row, k in chunks])
        for each, lie in zip(surprisals, numbers, strict=True)
    )
    expected = kdx.knowledge.functional.binary_divergence(ours, theirs).mean()
    torch.testing.assert_close(before.terms["alm"], expected, rtol=1e-4, atol=1e-6)
    assert before.counts["alm"].item() == len(ours)
    run = kdx.fit(
        scheme, data, epochs=30, device="cpu", progress=False, optimizer=kdx.Ref("AdamW", lr=0.01), accumulate=2
    )
    assert run.step == 30
    after = scheme(batch)
    assert after.terms["alm"] < 0.7 * before.terms["alm"]


def test_rows_of_documents_in_a_recipe(tokenizers, tmp_path: Path):
    tokenizers[1].save_pretrained(tmp_path / "teacher")
    documents = tuple(f"{line}{k} " * 3 for k in range(12) for line in (*VERSE, *CODE))
    data = {
        "name": "two-tokenizers",
        "documents": documents,
        "vocabulary": 300,
        "teacher_tokenizer": str(tmp_path / "teacher"),
        "length": 24,
        "teacher_length": 40,
    }
    rows = TwoTokenizerTexts("train", **{name: value for name, value in data.items() if name != "name"})
    assert rows.input_shape == (24,)
    for row in (0, 7):
        lies = rows[row].views["alignment"]
        both = TwoTokenizers(rows.tokenizer, tokenizers[1])
        ours = spelt(both, rows[row].inputs, lies["student_chunks"], "student")
        assert ours == spelt(both, rows[row].views["teacher"], lies["teacher_chunks"], "teacher")
        assert len(ours) > 3
    model = {"name": "token-decoder", "dim": 8, "depth": 1, "heads": 2}
    recipe = {
        "threads": 1,
        "controls": [],
        "data": {"dataset": data, "views": {"teacher": {"dataset": {**data, "side": "teacher"}}}, "validation": 20},
        "task": {"name": "causal-lm", "weight": 0.5},
        "teacher": {"model": model, "view": "teacher", "reuse": False},
        "student": {"model": model},
        "knowledge": {"alm": {"name": "alm"}},
        "train": {"epochs": 1},
    }
    plugins = Plugins(entries=(), blocked=(), trace=False)
    plugins.register(kdx_text.plugin, "text")
    checked = check_recipe(recipe, plugins=plugins)
    summary = kdx.run(checked, folder=tmp_path / "run", report=False, plugins=plugins)
    assert {"cross_entropy", "bits_per_byte"} <= summary["stages"]["teacher"]["test"].keys()
    assert "term/alm" in (tmp_path / "run" / "distilled" / "metrics.jsonl").read_text()
