"""kdx's own components stand what the conformance kit asks of anyone's."""

from __future__ import annotations

import pydoc
import re

import pytest
import torch
from torch import nn

import kdx
import kdx.builtin
from kdx.options import options_of
from kdx.registry import Plugins
from kdx.testing import KnowledgeTags, SchemeTags, TaskTags, checks_of, toy_batches, toy_model
from tests.language_models import Causal
from tests.language_models import batches as language_batches

OWN = Plugins(entries=(), blocked=(), trace=False)
MAPS = {"student": ("a", "b"), "teacher": ("c", "d")}
VECTORS = {"student": "pool", "teacher": "pool"}
ZERO = KnowledgeTags(zero_when_equal=True)
UNEQUAL = {"student_shapes": {"pool": (8,)}, "teacher_shapes": {"pool": (6,)}}
RELATION = KnowledgeTags(zero_when_equal=True, **UNEQUAL)
PIXELS = {"student_shapes": {"logits": (5, 3, 4)}, "teacher_shapes": {"logits": (5, 3, 4)}}
IMAGES = KnowledgeTags(student_shapes={"a": (3, 8, 8), "b": (4, 4, 4)}, teacher_shapes={"c": (5, 8, 8), "d": (6, 2, 2)})
SEQUENCES = KnowledgeTags(student_shapes={"a": (7, 3), "b": (7, 3)}, teacher_shapes={"c": (7, 5), "d": (7, 5)})
QUERIES = {"student": "q", "student_keys": "k", "teacher": "q", "teacher_keys": "k"}
TOKENS = KnowledgeTags(
    student_shapes={"q": (7, 4), "k": (7, 4)}, teacher_shapes={"q": (7, 6), "k": (7, 6)}, zero_when_equal=True
)
WEIGHTS = KnowledgeTags(student_shapes={"w": (2, 5, 5)}, teacher_shapes={"w": (2, 5, 5)}, zero_when_equal=True)


def two_tokenisations(rows: int) -> tuple:
    """Logits of two vocabularies over rows of two to four chunks, and the batch that says how they lie."""
    words = kdx.datasets.TwoVocabularies([b"", b"a", b"b", b"ab", b"c"], [b"a", b"b", b"c", b"ca", b"cab", b"bc"])
    texts = [
        (kdx.datasets.Tokens([1, 3, 4, 3], prompt=1), kdx.datasets.Tokens([2, 0, 1, 4], prompt=1)),
        (kdx.datasets.Tokens([0, 1, 2, 4]), kdx.datasets.Tokens([0, 1, 2])),
        (kdx.datasets.Tokens([0, 4, 3, 2, 2], prompt=1), kdx.datasets.Tokens([5, 4, 1, 1], prompt=1)),
    ]
    batch = words.batch([texts[row % 3] for row in range(rows)])
    draws = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(*ids.shape, classes, generator=draws, dtype=torch.float64)
        for ids, classes in ((batch.inputs["input_ids"], 5), (batch.views["teacher"]["input_ids"], 6))
    )
    return {"logits": student}, {"logits": teacher}, batch._replace(inputs=None)


OTHER_TOKENIZER = KnowledgeTags(inputs=two_tokenisations)
PACKED = KnowledgeTags(student_shapes={"q": (5, 12)}, teacher_shapes={"q": (5, 24)})

KNOWLEDGE = {
    "soft-targets": [({}, ZERO)],
    "logits": [({}, ZERO), ({"variant": "code"}, ZERO)],
    "sigmoid-targets": [({}, ZERO), ({"temperature": 3.0}, ZERO)],
    "gaussian-kl": [
        ({}, KnowledgeTags(zero_when_equal=True, student_shapes={"logits": (6,)}, teacher_shapes={"logits": (6,)})),
        ({}, KnowledgeTags(student_shapes={"logits": (3,)}, teacher_shapes={"logits": (6,)})),
    ],
    "margin-mse": [({}, ZERO)],
    "hard-targets": [({}, None)],
    "dkd": [({}, ZERO)],
    "nkd": [({}, None)],
    "ctkd": [({}, ZERO), ({"per": "sample"}, ZERO)],
    "mlld": [({}, ZERO), ({"variant": "code"}, ZERO)],
    "logit-standardisation": [
        ({"around": kdx.SoftTargets(2.0)}, ZERO),
        ({"around": kdx.make("knowledge", "dkd")}, ZERO),
        ({"around": kdx.make("knowledge", "dist")}, None),
    ],
    "dist": [({}, None)],
    "reverse-kl": [({}, ZERO)],
    "jsd": [({}, ZERO)],
    "skew-kl": [({}, ZERO), ({"direction": "reverse", "skew": 0.3}, ZERO)],
    "adaptive-kl": [({}, ZERO)],
    "alpha-beta": [({}, ZERO), ({"alpha": 1.0, "beta": 0.0}, ZERO)],
    "uld": [({}, OTHER_TOKENIZER), ({"student_temperature": 2.0, "teacher_temperature": 0.5}, OTHER_TOKENIZER)],
    "alm": [({}, OTHER_TOKENIZER), ({"temperature": None}, OTHER_TOKENIZER)],
    "hint": [(MAPS, IMAGES), (MAPS | {"variant": "paper"}, SEQUENCES)],
    "attention-transfer": [(MAPS, ZERO)],
    "cwd": [(MAPS, ZERO), (MAPS, IMAGES), ({}, KnowledgeTags(zero_when_equal=True, **PIXELS))],
    "nst": [(MAPS, ZERO)],
    "vid": [(MAPS, IMAGES)],
    "attention-scores": [(QUERIES | {"heads": 2}, TOKENS), ({"student": "w", "teacher": "w"}, WEIGHTS)],
    "hidden-states": [(MAPS, SEQUENCES), (VECTORS, RELATION)],
    "cosine": [(MAPS, SEQUENCES), (MAPS, ZERO)],
    "minilm": [
        (QUERIES | {"heads": 2, "relations": ("qq", "kk", "qk")}, TOKENS),
        ({"student": "q", "teacher": "q", "packed": True, "heads": 4}, PACKED),
    ],
    "rkd": [(VECTORS, RELATION)],
    "irg": [(MAPS, ZERO)],
    "sp": [(MAPS, ZERO)],
    "pkt": [(VECTORS, RELATION)],
    "cc": [
        (VECTORS, RELATION),
        (VECTORS | {"variant": "code"}, KnowledgeTags(batch_order_invariant=False)),
    ],
    "fsp": [(MAPS, ZERO)],
    "ofd": [(MAPS, IMAGES)],
    "ofa": [
        ({"student": ("a", "b")}, None),
        (
            {"student": ("a", "b", "logits"), "gamma": [1.0, 1.5, 2.0], "variant": "paper"},
            KnowledgeTags(student_shapes={"a": (3, 8, 8), "b": (6,), "logits": (5,)}, teacher_shapes={"logits": (5,)}),
        ),
    ],
    "ab": [(MAPS, None), (MAPS, IMAGES)],
    "ft": [
        ({"student": "a", "teacher": "b"}, None),
        ({"student": "a", "teacher": "d", "variant": "paper"}, IMAGES),
    ],
    "review-kd": [(MAPS, IMAGES)],
    "crd": [
        (VECTORS | {"samples": 32, "negatives": 16, "dim": 8}, KnowledgeTags(batch_order_invariant=False, **UNEQUAL)),
    ],
    "semckd": [(MAPS, IMAGES)],
    "simkd": [({"teacher": "map"}, None)],
}
"""Component -> options and tags it is tried with; one that is not here is tried with its defaults."""
KNOWN = {
    "ctkd": {"gradient_is_right": "what is learned gets the gradient reversed"},
    "adaptive-kl": {"gradient_is_right": "its weights follow the student and get no gradient"},
}


def knowledge() -> list:
    parameters = []
    for name in OWN.components("knowledge"):
        target = OWN.load("knowledge", name)
        taps = {option.name: option.name[0] for option in options_of(target) if option.required}
        for number, (options, tags) in enumerate(KNOWLEDGE.get(name, [(taps, None)])):
            label = name if not number else f"{name}-{number + 1}"
            component = OWN.make("knowledge", name, **options)
            checks = checks_of(component, tags=tags, expected_failures=KNOWN.get(name))
            parameters += [
                pytest.param(
                    check,
                    id=f"{label}-{check.name}",
                    marks=[pytest.mark.xfail(reason=check.expected_failure)] if check.expected_failure else [],
                )
                for check in checks
            ]
    return parameters


@pytest.mark.parametrize("check", knowledge())
def test_knowledge(check) -> None:
    check()


def pair() -> dict[str, nn.Module]:
    return {"student": toy_model(), "teacher": toy_model(6, seed=1)}


TERMS = {
    "kd": (0.7, kdx.SoftTargets(2.0)),
    "hint": (2.0, kdx.Hint(student="conv", teacher="conv")),
}


class Pair(nn.Module):
    """Two toy models whose outputs add up."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.assistant = toy_model(), toy_model(2, seed=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.student(x) + self.assistant(x)


def toy_sum() -> kdx.models.FeatureSum:
    """Two small models whose maps add up, for the images of toy models."""
    one, other = ({"name": "convnet", "width": width, "stages": 1} for width in (4, 2))
    example = toy_batches(1)[0]
    shape = tuple(kdx.Batch.of(example).inputs.shape[1:])
    classes = toy_model()(kdx.Batch.of(example).inputs).shape[1]
    return kdx.models.FeatureSum(one, other, "stage1", channels=6, num_classes=classes, input_shape=shape)


SCHEMES = {
    "supervised": lambda make: make(toy_model()),
    "offline": lambda make: make(**pair(), knowledge=TERMS),
    "dense-guidance": lambda make: make(
        toy_model(), {"large": toy_model(6, seed=1), "middle": toy_model(5, seed=2)}, knowledge=TERMS, seed=0
    ),
    "residual": lambda make: make(Pair(), toy_model(6, seed=1)),
    "residual-features": lambda make: make(toy_sum(), toy_model(6, seed=1), teacher_layer="norm"),
    "mutual": lambda make: make([toy_model(), toy_model(6, seed=1)], knowledge=TERMS),
    "online": lambda make: make(**pair(), knowledge=TERMS),
    "one": lambda make: make(toy_model(), split="relu", branches=2),
    "kdcl": lambda make: make([toy_model(), toy_model(6, seed=1)], shift=1),
    "multi-teacher": lambda make: make(
        toy_model(),
        {"first": toy_model(6, seed=1), "second": toy_model(5, seed=2)},
        knowledge={"kd": kdx.SoftTargets(2.0), "hint": kdx.Hint(student="conv", teacher="first/conv")},
    ),
    "simkd": lambda make: make(**pair(), student_layer="relu", teacher_layer="relu", classifier="fc"),
    "tf-kd": lambda make: make(toy_model()),
    "cs-kd": lambda make: make(toy_model()),
    "ps-kd": lambda make: make(toy_model(), samples=48),
    "byot": lambda make: make(toy_model(), stages=("relu", "pool")),
    "sad": lambda make: make(toy_model(), stages=("conv", "relu")),
    "snapshot-distillation": lambda make: make(toy_model(), cycle=1),
    "ema-teacher": lambda make: make(toy_model(), decay=0.9),
    "boundary-stage": lambda make: make(**pair(), student_layers="norm", teacher_layers="norm"),
    "paraphrase": lambda make: make(kdx.teachers.Paraphrased(toy_model(6, seed=1), "norm", channels=6)),
    "hint-stage": lambda make: make(**pair(), student_layer="norm", teacher_layer="norm"),
    "on-policy": lambda make: make(Causal(dropout=0.1), Causal(8, seed=1), max_new_tokens=3),
    "data-free": lambda make: make(**pair(), noise=4, width=4, student_steps=2),
}
"""Scheme -> how it is built for toy models."""

SCHEME_TAGS = {
    "on-policy": SchemeTags(data=language_batches()),
    "data-free": SchemeTags(mean_over_samples=False),  # every batch has noise of its own
    "cs-kd": SchemeTags(mean_over_samples=False),  # the second half of a batch belongs to the first
}
FAILURES = {"data-free": {"training_lowers_the_loss": "what the student descends the generator climbs"}}


def schemes() -> list:
    return [
        pytest.param(
            check,
            id=f"{name}-{check.name}",
            marks=[pytest.mark.xfail(reason=check.expected_failure)] if check.expected_failure else [],
        )
        for name, build in SCHEMES.items()
        for check in checks_of(
            build(OWN.load("scheme", name)), tags=SCHEME_TAGS.get(name), expected_failures=FAILURES.get(name)
        )
    ]


@pytest.mark.parametrize("check", schemes())
def test_scheme(check) -> None:
    check()


def test_a_scheme_with_a_memory_bank_keeps_it_over_a_resumed_run() -> None:
    contrast = kdx.make("knowledge", "crd", student="flat", teacher="flat", samples=48, negatives=16, dim=8)
    kdx.testing.check_scheme(
        kdx.Offline(**pair(), knowledge={"crd": (0.1, contrast)}),
        tags=SchemeTags(data=toy_batches(4, rows=12), mean_over_samples=False),
    )


ASSISTANTS = {
    "takd": {"count": 2},
    "dgkd": {"sizes": [6, 4]},
    "boundaries-then-distil": {"student_layers": ["stage1.norm1"], "teacher_layers": ["stage1.norm1"]},
    "factor-transfer": {"layer": "stage2"},
    "hint-then-distil": {"student_layer": "stage1", "teacher_layer": "stage2"},
}
"""Assistant -> its options, where it needs some."""


def assistants() -> list:
    return [
        pytest.param(check, id=f"{name}-{check.name}")
        for name in OWN.components("assistant")
        for check in checks_of(OWN.make("assistant", name, **ASSISTANTS.get(name, {})))
    ]


@pytest.mark.parametrize("check", assistants())
def test_assistant(check) -> None:
    check()


TASKS = {
    "binary": [{}, {"pos_weight": 3.0}],
    "classification": [{}, {"label_smoothing": 0.2, "class_weights": [1.0, 2.0, 0.5, 0.0, 3.0]}, {"class_dim": 2}],
    "embedding": [{"width": 8, "margin": 1.0}],
    "heads": [],  # outputs and targets are mappings, see tests/tasks/test_heads.py
    "multi-label": [{}, {"pos_weight": [1.0, 2.0, 0.5, 3.0, 1.0]}],
    "regression": [{}, {"loss": "l1"}, {"loss": "huber", "delta": 0.5}, {"loss": "gaussian"}],
    "segmentation": [{}, {"label_smoothing": 0.1}],
    "causal-lm": [{}, {"label_smoothing": 0.1, "token_bytes": [1, 2, 3, 0, 4]}, {"shift": False}],
    "token-classification": [{}, {"class_weights": [1.0, 2.0, 0.5, 0.0, 3.0]}],
}
"""Task -> the options that it is tried with."""


def tasks() -> list:
    return [
        pytest.param(check, id=f"{name}-{number}-{check.name}")
        for name in OWN.components("task")
        for number, options in enumerate(TASKS[name])
        for check in checks_of(OWN.make("task", name, **options), tags=TaskTags(classes=2 if name == "binary" else 5))
    ]


@pytest.mark.parametrize("check", tasks())
def test_task(check) -> None:
    check()


def students() -> list:
    return [
        pytest.param(check, id=f"{name}-{check.name}")
        for name in OWN.components("student")
        for check in checks_of(OWN.make("student", name))
    ]


@pytest.mark.parametrize("check", students())
def test_student(check) -> None:
    check()


@kdx.testing.parametrize_checks(kdx.builtin)
def test_plugin(check) -> None:
    check()


def test_every_scheme_is_in_the_table() -> None:
    assert SCHEMES.keys() == OWN.components("scheme").keys()


def test_a_tied_pair_of_toy_models_is_the_same_for_the_same_seed() -> None:
    one, other = toy_model(seed=3), toy_model(seed=3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("hook", ["kdx_knowledge", "kdx_schemes", "kdx_assistants"])
def test_the_docstring_of_every_method_gives_the_paper_of_its_entry(hook: str) -> None:
    for spec in getattr(kdx.builtin, hook)():
        text = pydoc.getdoc(pydoc.locate(spec.target.replace(":", ".")))
        if spec.paper is None:
            assert spec.name == "supervised"
            continue
        assert re.search(r"Papers?: ", text), spec.name
        assert re.search(r"\d{4}", spec.paper)[0] in text, spec.name
        if arxiv := re.search(r"arXiv:(\S+?)(,|$)", spec.paper):
            assert f"https://arxiv.org/abs/{arxiv[1]}" in text, spec.name
