"""Top-k log-probabilities that other programs wrote, as a store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import kdx
from kdx.datasets import View
from kdx.errors import StoreError
from kdx.ops import SparseTargets
from kdx.store import import_topk, write_store
from kdx.store.sequences import places_of
from kdx.teachers import Stored
from tests.store.conftest import contents_of
from tests.store.test_sequences import VOCABULARY, Causal, Sentences, padding

K = 4


@pytest.fixture(scope="module")
def model() -> Causal:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Causal()


def said(model: Causal, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids[None], torch.ones(1, len(ids))).log_softmax(-1)[0]  # [L, V]


def vllm(model: Causal, ids: torch.Tensor) -> dict[str, Any]:
    """What vLLM's server returns with ``prompt_logprobs=K``: the token itself first, then the top K, about itself."""
    places: list[Any] = [None]
    for place, row in enumerate(said(model, ids)[:-1]):
        top = row.topk(K)
        own = int(ids[place + 1])
        ranks = {own: int((row > row[own]).sum()) + 1} | {int(c): rank for rank, c in enumerate(top.indices, 1)}
        places.append({str(c): {"logprob": float(row[c]), "rank": r, "decoded_token": "x"} for c, r in ranks.items()})
    return {"prompt_token_ids": ids.tolist(), "prompt_logprobs": places}


def plain(model: Causal, ids: torch.Tensor) -> dict[str, Any]:
    top = said(model, ids).topk(K)
    return {"tokens": ids.tolist(), "ids": top.indices.tolist(), "logprobs": top.values.tolist()}


def own(model: Causal, ids: torch.Tensor) -> dict[str, Any]:
    found = plain(model, ids)
    return found | {name: [None, *found[name][:-1]] for name in ("ids", "logprobs")}


def written(folder: Path, records: list[Any], suffix: str = ".jsonl") -> Path:
    path = folder / f"said{suffix}"
    if suffix == ".parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=4)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def completion(record: dict[str, Any]) -> dict[str, Any]:
    choice = record | {"index": 0, "text": "", "logprobs": None}
    return {"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": {}}


def batch_line(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "vllm-1",
        "custom_id": "r",
        "response": {"status_code": 200, "body": completion(record)},
        "error": None,
    }


FORMS: dict[str, Any] = {
    "vllm": (vllm, lambda r: r, ".jsonl", "next"),
    "a completion": (vllm, completion, ".jsonl", "next"),
    "a batch file": (vllm, batch_line, ".jsonl", "next"),
    "without tokens": (vllm, lambda r: {"prompt_logprobs": r["prompt_logprobs"]}, ".jsonl", "next"),
    "plain": (plain, lambda r: r, ".jsonl", "next"),
    "about the token": (own, lambda r: r, ".jsonl", "own"),
    "parquet": (plain, lambda r: r, ".parquet", "next"),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_another_program_wrote_is_what_the_teacher_says(tmp_path, model, form) -> None:
    make, wrap, suffix, of = FORMS[form]
    data = Sentences()
    path = written(tmp_path, [wrap(make(model, ids)) for ids in data.rows], suffix)
    store = import_topk(tmp_path / "s", path, View(data), classes=VOCABULARY, of=of, dtype="fp32")
    assert store.verify() == 2
    batch = padding(View(data).__getitems__([6, 20, 2]), left=True)
    targets = store.read(batch.index, places=places_of(batch.inputs)).response("logits")
    assert isinstance(targets, SparseTargets)
    for row, at in enumerate((6, 20, 2)):
        ids = data.rows[at]
        n, log_p = len(ids), said(model, ids)
        places = batch.inputs["attention_mask"][row].bool()
        for place in range(n - (make is not plain)):  # nobody says what comes after the last token of a prompt
            valid = targets.valid[row][places][place]
            found = targets.ids[row][places][place][valid]
            wanted = set(log_p[place].topk(K).indices.tolist()) | ({int(ids[place + 1])} if make is vllm else set())
            assert set(found.tolist()) == wanted
            torch.testing.assert_close(targets.logprobs[row][places][place][valid], log_p[place][found])
            left = 1 - log_p[place][found].exp().sum()
            torch.testing.assert_close(targets.rest()[row][places][place].exp(), left, atol=1e-6, rtol=1e-4)
        if make is not plain:
            assert not targets.valid[row][places][-1].any()
    assert not targets.valid[~batch.inputs["attention_mask"].bool()].any()


@dataclass
class Logprob:
    """As vLLM has it."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class RequestOutput:
    """As ``vllm.LLM.generate`` gives it."""

    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None]


def test_the_outputs_of_vllm_are_taken_as_they_are_and_are_the_same_store(tmp_path, model) -> None:
    data, records, outputs = Sentences(), [], []
    for ids in data.rows:
        records.append(record := vllm(model, ids))
        places = [
            place and {int(c): Logprob(**entry) for c, entry in place.items()} for place in record["prompt_logprobs"]
        ]
        outputs.append(RequestOutput(record["prompt_token_ids"], places))
    import_topk(tmp_path / "a", outputs, View(data), classes=VOCABULARY)
    import_topk(tmp_path / "b", written(tmp_path, records), View(data), classes=VOCABULARY)
    assert contents_of(tmp_path / "a") == contents_of(tmp_path / "b")


def test_imported_rows_teach_as_those_of_a_store_of_the_teacher(tmp_path, model) -> None:
    data = Sentences()
    path = written(tmp_path, [plain(model, ids) for ids in data.rows])
    import_topk(tmp_path / "imported", path, View(data), classes=VOCABULARY, dtype="fp32")
    write_store(tmp_path / "own", model, View(data), what=f"topk:{K}", dtype="fp32", collate=padding)

    def distilled(folder: str) -> list[torch.Tensor]:
        torch.manual_seed(1)
        task, knowledge = kdx.make("task", "causal-lm"), {"kd": kdx.SoftTargets(1.0)}
        scheme = kdx.Offline(
            Causal(4), Stored(tmp_path / folder, data=View(data)), task=(0.5, task), knowledge=knowledge
        )
        loader = DataLoader(View(data), 6, collate_fn=padding)
        optimizer = kdx.Ref("SGD", lr=0.1)
        kdx.fit(scheme, loader, epochs=2, device="cpu", seed=0, progress=False, optimizer=optimizer)
        return [parameter.detach() for parameter in scheme.student.parameters()]

    for a, b in zip(distilled("imported"), distilled("own"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_records_that_say_their_row_come_in_any_order_and_may_be_of_more_rows(tmp_path, model) -> None:
    data = Sentences()
    records = [plain(model, ids) | {"index": row} for row, ids in enumerate(data.rows)]
    some = View(data, [9, 3, 14])
    import_topk(tmp_path / "a", written(tmp_path, records[::-1]), some, classes=VOCABULARY)
    store = import_topk(tmp_path / "b", [plain(model, data.rows[row]) for row in (9, 3, 14)], some, classes=VOCABULARY)
    a, b = (Stored(tmp_path / name)(padding(some.__getitems__([2, 0]))).response("logits") for name in "ab")
    assert a.ids.equal(b.ids)
    assert a.logprobs.equal(b.logprobs)
    assert store.manifest.teacher["class"] == "imported"
    with pytest.raises(StoreError, match="of a model that it does not name; leave it out"):
        Stored(store, teacher=model)


def test_an_interrupted_import_ends_as_one_written_in_one_go(tmp_path, model, monkeypatch) -> None:
    monkeypatch.setattr("kdx.store.writer.SHARD_BYTES", 1000)
    data = Sentences()
    path = written(tmp_path, [vllm(model, ids) for ids in data.rows])

    def stop(done: int, total: int) -> None:
        assert total > 3
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_topk(tmp_path / "part", path, View(data), classes=VOCABULARY, progress=stop)
    for folder in ("part", "whole"):
        import_topk(tmp_path / folder, path, View(data), classes=VOCABULARY)
    assert contents_of(tmp_path / "part") == contents_of(tmp_path / "whole")
    with pytest.raises(StoreError, match=r"holds another store \(teacher.hash"):
        import_topk(tmp_path / "part", [plain(model, ids) for ids in data.rows], View(data), classes=VOCABULARY)


def test_the_likeliest_classes_are_kept_and_a_class_ruled_out_stays_so(tmp_path, model) -> None:
    data = Sentences()
    records = [plain(model, ids) for ids in data.rows]
    store = import_topk(tmp_path / "two", records, View(data), classes=VOCABULARY, k=2, temperature=2.0)
    assert store.manifest.what == ["topk:2@2"]
    both = store.read(torch.tensor([5])).response("logits")
    assert both.ids[0].tolist() == [ids[:2] for ids in records[5]["ids"]]
    assert both.temperature == 2
    ids = data.rows[0]
    places = [None, *({str(int(token)): {"logprob": -9999.0}, "0": {"logprob": 0.0}} for token in ids[1:])]
    impossible = [{"prompt_logprobs": places}]  # as a server writes -inf
    store = import_topk(tmp_path / "none", impossible, View(data, [0]), classes=VOCABULARY)
    found = store.read(torch.tensor([0])).response("logits").logprobs[0, 0].tolist()
    assert found == [pytest.approx(0.0, abs=1e-6), -torch.inf]  # what is left of 1 is known to rounding


def test_answers_about_rows_of_several_documents_are_refused(tmp_path, model) -> None:
    class Packed(Sentences):
        def __getitem__(self, row):
            inputs, targets = super().__getitem__(row)
            ids = inputs["input_ids"] if isinstance(inputs, dict) else inputs
            places = torch.arange(len(ids)) % max(2, len(ids) // 2)
            return {"input_ids": ids, "position_ids": places}, targets

    data = Packed()
    records = [vllm(model, ids) for ids in data.rows[:2]]
    with pytest.raises(StoreError, match=r"a new document begins \(position_ids\), which the server did not know"):
        import_topk(tmp_path / "packed", records, View(data, [0, 1]), classes=VOCABULARY)


def test_a_record_without_its_row_behind_those_that_have_one_is_refused(tmp_path, model) -> None:
    data = Sentences()
    records = [vllm(model, data.rows[0]) | {"index": 0}, vllm(model, data.rows[1])]
    with pytest.raises(StoreError, match="has no index, and others have"):
        import_topk(tmp_path / "mixed", records, View(data, [0]), classes=VOCABULARY)


def changed(change: Any, make: Any = vllm) -> Any:
    """The records of all rows, those of row 3 changed."""

    def records(model: Causal, rows: list[torch.Tensor]) -> list[Any]:
        found = [make(model, ids) for ids in rows]
        found[3] = change(found[3])
        return found

    return records


def cut(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value[:-1] for name, value in record.items()}


def holed(record: dict[str, Any]) -> dict[str, Any]:
    places = list(record["prompt_logprobs"])
    places[2] = None
    return record | {"prompt_logprobs": places}


def at_one(name: str, value: Any) -> Any:
    def change(record: dict[str, Any]) -> dict[str, Any]:
        return record | {name: [record[name][0], value, *record[name][2:]]}

    return change


def untold(record: dict[str, Any]) -> dict[str, Any]:
    record["prompt_logprobs"][1] = {"0": {"logprob": -1.0}}
    return {"prompt_logprobs": record["prompt_logprobs"]}


BAD: dict[str, Any] = {
    "cut": (changed(cut), r"record 3: has log-probabilities for \d+ tokens, and row 3 of the data has \d+; was it cut"),
    "tokens cut": (
        changed(lambda r: r | {"prompt_token_ids": [1]}),
        r"record 3: has 1 tokens and log-probabilities for",
    ),
    "another tokenizer": (
        changed(at_one("prompt_token_ids", 0)),
        r"other tokens than row 3 .* token 1, \d+, is 0 there",
    ),
    "another order": (lambda model, rows: [vllm(model, ids) for ids in rows[::-1]], r"record 0: .*other? tokens?"),
    "without the token": (
        changed(untold),
        r"whose token 1, \d+, is not among its classes; was it written with another",
    ),
    "no log-probabilities": (
        changed(holed),
        r"record 3: has no log-probabilities for token 2 of row 3, which has a label",
    ),
    "beyond": (
        changed(at_one("ids", [3, 19, 5, 6]), plain),
        r"record 3, token 1: names the class 19, and there are 19",
    ),
    "logits": (changed(at_one("logprobs", [3.0, 2.0, 1.0, 0.0]), plain), r"record 3, token 1: .* are they logits"),
    "a softmax of a few": (changed(at_one("logprobs", [-0.1] * 4), plain), r"3\.62 as the sum of the probabilities"),
    "twice": (changed(at_one("ids", [3, 3, 5, 6]), plain), r"record 3, token 1: names a class twice"),
    "uneven": (changed(at_one("ids", [3, 4]), plain), r"record 3, token 1: has 2 classes and 4 log-probabilities"),
    "no number": (changed(at_one("logprobs", [None] * 4), plain), r"class \d+: expected a log-probability, got None"),
    "not a number": (changed(at_one("logprobs", [float("nan")] * 4), plain), r"expected a log-probability, got nan"),
    "no id": (changed(at_one("ids", ["a", 1, 2, 3]), plain), r"expected a token id, got 'a'"),
    "too few": (
        lambda model, rows: [vllm(model, ids) for ids in rows[:5]],
        r"5 records for the 23 rows .* none for row 5",
    ),
    "too many": (lambda model, rows: [vllm(model, ids) for ids in [*rows, rows[0]]], r"24 records for the 23 rows"),
    "the same row": (
        lambda model, rows: [vllm(model, rows[0]) | {"index": 0}] * 2,
        r"record 1: is of row 0, as a record",
    ),
    "another thing": (lambda model, rows: [{"text": "x"}] * 23, r"record 0: holds no log-probabilities .* got text"),
    "several choices": (
        lambda model, rows: [{"choices": [{}, {}]}] * 23,
        r"record 0: holds 2 choices; write one prompt",
    ),
    "nothing": (
        lambda model, rows: [{"ids": [None] * len(x), "logprobs": [None] * len(x)} for x in rows],
        "no record holds",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_records_that_do_not_fit_the_data_are_refused_by_a_sentence(tmp_path, model, name) -> None:
    records, message = BAD[name]
    data = Sentences()
    with pytest.raises(StoreError, match=message):
        import_topk(tmp_path / "s", records(model, data.rows), View(data), classes=VOCABULARY)
    assert not list(tmp_path.iterdir())


def test_prompts_that_have_no_label_need_no_log_probabilities(tmp_path, model) -> None:
    data = Sentences()

    def collate(rows: list[Any]) -> Any:
        batch = padding(rows)
        batch.targets[:, :3] = -100
        return batch

    records = [holed(vllm(model, ids)) for ids in data.rows]
    store = import_topk(tmp_path, records, View(data), classes=VOCABULARY, collate=collate)
    valid = store.read(torch.tensor([4])).response("logits").valid
    assert valid[0].any(1).tolist() == [True, False] + [True] * (len(data.rows[4]) - 3) + [False]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"{\n", r"a.jsonl, line 1: no JSON .*expected one record a line"),
        ("a.jsonl", b"[" * 100_000, r"a.jsonl, line 1: no JSON"),
        ("a.parquet", b"PAR1", r"a.parquet is no Parquet file"),
        ("a.pkl", b"", r"expected log-probabilities as .jsonl \(a record a line\) or .parquet, got '.pkl'"),
        ("a.jsonl", None, r"there is no file"),
    ],
)
def test_a_file_that_is_none_is_refused_by_a_sentence(tmp_path, name, content, message) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError, match=message):
        import_topk(tmp_path / "s", tmp_path / name, View(Sentences()), classes=VOCABULARY)
