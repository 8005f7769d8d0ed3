"""Encoders with heads: padding, pooling, taps, freezing, and a recipe from text files to a student."""

import json
import os

import pytest
import torch
from kdx_text.encoder import HFEncoder
from kdx_text.tokens import load_tokenizer

import kdx
from kdx import Taps

BERT = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 30,
    "max_position_embeddings": 16,
}


def encoder(**options) -> HFEncoder:
    torch.manual_seed(0)
    return HFEncoder(**({"config": BERT, "num_classes": 3, "input_shape": (8,)} | options)).eval()


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_padding_changes_nothing(pool) -> None:
    model = encoder(pool=pool)
    ids = torch.randint(1, 30, (4, 5))
    padded = torch.cat([ids, torch.zeros(4, 3, dtype=torch.int64)], 1)
    torch.testing.assert_close(model(padded), model(ids))


def test_a_text_of_padding_alone_is_finite() -> None:
    assert encoder()(torch.zeros(2, 8, dtype=torch.int64)).isfinite().all()


def test_hidden_states_and_attentions_are_taps() -> None:
    model = encoder()
    ids = torch.randint(1, 30, (4, 8))
    captured = Taps(model, ["encoder.encoder.layer.*", "encoder.encoder.layer.1.attention.self[1]", "pooled"])(ids)
    with torch.no_grad():
        expected = model.encoder(ids, output_hidden_states=True, output_attentions=True)
    for tapped, hidden in zip(captured.select("encoder.encoder.layer.*"), expected.hidden_states[1:], strict=True):
        torch.testing.assert_close(tapped, hidden)
    torch.testing.assert_close(captured["encoder.encoder.layer.1.attention.self[1]"], expected.attentions[1])
    torch.testing.assert_close(captured["pooled"], expected.last_hidden_state.mean(1))


def test_a_saved_encoder_comes_back_with_its_weights(tmp_path) -> None:
    first = encoder()
    first.encoder.save_pretrained(tmp_path / "bert")
    again = HFEncoder(path=tmp_path / "bert", num_classes=3, input_shape=(8,)).eval()
    again.head.load_state_dict(first.head.state_dict())
    ids = torch.randint(1, 30, (2, 8))
    torch.testing.assert_close(again(ids), first(ids))


@pytest.fixture
def saved(tmp_path):
    """The folder of a saved encoder, with a module that leaves a trace when it is imported."""
    encoder().encoder.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "own.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
        "from transformers import BertConfig as Config, BertModel as Model, BertTokenizer as Tokens\n"
    )
    yield tmp_path / "bert"
    assert not (tmp_path / "ran").exists()


def test_options_of_the_config_are_replaced_and_others_refused(saved) -> None:
    assert (
        HFEncoder(path=saved, config={"layer_norm_eps": 0.5}, input_shape=(8,))
        .encoder.encoder.layer[0]
        .output.LayerNorm.eps
        == 0.5
    )
    for name in ("trust_remote_code", "weights_only", "quantization_config", "code_revision", "save_pretrained"):
        with pytest.raises(ValueError, match=f"config: BertConfig has no option '{name}'"):
            HFEncoder(path=saved, config={name: True})


@pytest.mark.parametrize("kind", ["bert", "of-its-own"])
def test_code_in_the_folder_of_an_encoder_is_not_run(saved, kind: str, monkeypatch) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "y")
    mapping = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoTokenizer": ["own.Tokens", None]}
    settings = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(settings | {"model_type": kind, "auto_map": mapping}))
    (saved / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Tokens", "auto_map": mapping}))
    if kind == "bert":
        HFEncoder(path=saved, input_shape=(8,))
        HFEncoder(config=BERT | {"auto_map": mapping}, input_shape=(8,))
    else:
        with pytest.raises(ValueError, match="custom code"):
            HFEncoder(path=saved)
    with pytest.raises(ValueError):  # noqa: PT011  # custom code, or no vocabulary
        load_tokenizer(saved)


def test_weights_of_an_encoder_are_read_without_running_them(saved, tmp_path) -> None:
    (saved / "model.safetensors").unlink()
    torch.save({"pooler.dense.bias": Attack(tmp_path / "ran")}, saved / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only|safetensors|WeightsUnpickler"):
        HFEncoder(path=saved, input_shape=(8,))


class Attack:
    """Leaves a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_only_the_last_layers_and_the_head_are_trained() -> None:
    trained = {name for name, p in encoder(trained_layers=1).named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith(("encoder.encoder.layer.1.", "head.")) for name in trained)
    assert {name for name, p in encoder(trained_layers=0).named_parameters() if p.requires_grad} == {
        "head.1.weight",
        "head.1.bias",
    }


def test_an_encoder_that_is_not_trained_stays_in_evaluation_mode() -> None:
    probe = encoder(trained_layers=0).train()
    assert probe.head.training
    assert not any(module.training for module in probe.encoder.modules())
    assert encoder(trained_layers=1).train().encoder.training


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_a_remembered_text_gives_what_the_encoder_gives_and_does_not_run_again(pool, monkeypatch) -> None:
    plain, probe = encoder(pool=pool, trained_layers=0), encoder(pool=pool, trained_layers=0, remember=True)
    monkeypatch.setattr("kdx_text.memory._known", {})
    ids = torch.randint(1, 30, (40, 8))
    ids[::2, 3:] = 0
    ids[7] = 0  # padding alone
    torch.testing.assert_close(probe(ids), plain(ids))
    ran: list[int] = []
    probe.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: ran.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    torch.testing.assert_close(probe(ids.flip(0)), plain(ids.flip(0)))
    assert ran == []
    probe(torch.cat([ids[:3], torch.full((1, 8), 29)]))  # one that is new
    probe(ids[:1])  # one alone, of which a latency may be wanted
    assert ran == [1, 1]
    again = encoder(pool=pool, trained_layers=0, remember=True)
    again.encoder.register_forward_pre_hook(lambda module, args: pytest.fail("ran again"))
    torch.testing.assert_close(again(ids), plain(ids))  # of all models with this encoder
    probe(ids)[:, 0].sum().backward()
    assert probe.head[1].weight.grad.any()


def test_an_encoder_that_has_changed_is_not_answered_for_from_memory() -> None:
    probe = encoder(trained_layers=0, remember=True)
    ids = torch.randint(1, 30, (4, 8))
    before = probe(ids)
    with torch.no_grad():
        probe.encoder.embeddings.word_embeddings.weight.neg_()
    plain = encoder(trained_layers=0)
    plain.load_state_dict(probe.state_dict())
    torch.testing.assert_close(probe(ids), plain(ids))
    assert not torch.allclose(probe(ids), before)
    probe.encoder.requires_grad_(True)
    with pytest.raises(RuntimeError, match="remember: expected a frozen encoder"):
        probe(ids)


def test_an_embedding_of_the_encoders_width_has_no_layer_of_its_own() -> None:
    assert list(encoder(head="embedding", num_classes=8).head.parameters()) == []
    assert encoder(head="embedding", num_classes=5)(torch.ones(2, 8, dtype=torch.int64)).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"config": None}, ValueError, "give path=, a local folder, or config= with a model_type"),
        ({"config": None, "path": "nowhere"}, FileNotFoundError, "there is no folder 'nowhere'"),
        ({"head": "tagging"}, ValueError, "head must be 'classification' or 'embedding', got 'tagging'"),
        ({"pool": "max"}, ValueError, "pool must be 'mean' or 'first', got 'max'"),
        ({"input_shape": (99,)}, ValueError, "texts have 99 tokens, the encoder takes 16"),
        ({"remember": True}, ValueError, "remember: .* give trained_layers=0, not None"),
        ({"trained_layers": 3}, ValueError, "trained_layers=3: BertModel has 2 layers"),
    ],
)
def test_bad_options_are_named(options, error, message) -> None:
    with pytest.raises(error, match=message):
        encoder(**options)


def test_a_recipe_distils_a_transformer_into_a_bag_of_words(folder, tokenizer, tmp_path) -> None:
    recipe = tmp_path / "text.yaml"
    recipe.write_text(
        json.dumps(
            {
                "threads": 1,
                "data": {
                    "dataset": {"name": "text", "folder": str(folder), "tokenizer": str(tokenizer), "length": 8},
                    "validation": 16,
                },
                "teacher": {"model": {"name": "hf-encoder", "config": BERT}, "train": {"epochs": 6, "batch_size": 16}},
                "student": {"model": {"name": "embedding-bag", "width": 8}},
                "task": {"weight": 0.1},
                "knowledge": {"kd": {"name": "soft-targets", "weight": 0.9, "temperature": 2.0}},
                "train": {"epochs": 12, "batch_size": 16, "optimizer": {"name": "AdamW", "lr": 0.02}},
                "controls": [],
            }
        )
    )
    summary = kdx.run(recipe, folder=tmp_path / "run")
    assert summary["stages"]["distilled"]["test"]["accuracy"] > 0.8  # two classes told apart by their words
