"""Every component against every awkward input, in every precision: finite, and what its rounded operands give."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import kdx
from kdx.batch import Batch
from kdx.capture import Captured
from kdx.registry import Plugins

LAYERS = {"student": ("one", "two"), "teacher": ("one", "two")}
OPTIONS = {
    "alm": {"shift": False},
    "uld": {"shift": False},
    "hint": LAYERS,
    "attention-transfer": LAYERS,
    "nst": LAYERS,
    "cwd": LAYERS,
    "attention-scores": {"student": "one", "teacher": "one"},
    "hidden-states": LAYERS | {"shared": False},
    "cosine": LAYERS | {"shared": False},
    "minilm": {"student": "tokens", "teacher": "tokens", "packed": True, "heads": 2},
    "vid": LAYERS,
    "ofd": LAYERS,
    "ab": LAYERS,
    "ofa": {"student": ("one", "vector", "logits")},
    "ft": {"student": "one", "teacher": "two"},
    "review-kd": LAYERS,
    "semckd": LAYERS,
    "fsp": LAYERS,
    "irg": LAYERS | {"transform": "edge"},
    "crd": {"student": "vector", "teacher": "vector", "samples": 20, "negatives": 6, "dim": 4},
    "simkd": {"student": "one", "teacher": "one"},
    "rkd": {"student": ("logits", "vector"), "teacher": ("logits", "vector")},
    "sp": {"student": ("logits", "one"), "teacher": ("logits", "one")},
    "pkt": {"student": ("logits", "vector"), "teacher": ("logits", "vector")},
    "cc": {"student": ("logits", "vector"), "teacher": ("logits", "vector")},
}
"""Component -> taps and options; the others read the logits alone."""
NAMES = sorted(
    # that of means with log-variances takes no logits of classes; its own tests have its awkward inputs
    Plugins(entries=(), blocked=(), trace=False).components("knowledge").keys() - {"gaussian-kl"}
)
ROWS, CLASSES = 4, 5


def features(random, seed: int, rows: int = ROWS, classes: int = CLASSES, width: int = 3) -> dict[str, Tensor]:
    shapes = {
        "logits": (classes,),
        "vector": (width + 2,),
        "one": (3, 4, 4),
        "two": (width, 2, 2),
        "tokens": (5, 6 * width),
    }
    return {name: random(rows, *shape, seed=seed) for name, shape in shapes.items()}


def awkward(random, case: str) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Features of a student and a teacher, and labels."""
    options = {"batch of one": {"rows": 1}, "two classes": {"classes": 2}}.get(case, {})
    student, teacher = features(random, 1, **options), features(random, 2, width=4, **options)
    for side, other in ((student, 0), (teacher, 1)):
        for name, value in side.items():
            if case == "zero rows":
                value[1] = 0
            elif case == "all zero":
                value.zero_()
            elif case == "duplicates":
                value[1:] = value[:1].clone()
            elif case == "gap of 400" and name == "logits":
                # each row is as sure as can be; in half of them student and teacher are sure of another class
                value.zero_()
                value[torch.arange(ROWS), (torch.arange(ROWS) + other * (torch.arange(ROWS) // 2)) % CLASSES] = 400
    targets = torch.arange(len(student["logits"])) % student["logits"].shape[1]
    return student, teacher, targets


def run(component, student, teacher, targets, *, autocast: bool = False):
    """The loss and the gradients of the student's features and of what the component learns."""
    leaves = {name: value.clone().requires_grad_() for name, value in student.items()}
    batch = Batch(None, targets, torch.arange(len(targets)))
    if isinstance(component, kdx.knowledge.OtherTokenizer):  # the samples as the tokens of one text, each a chunk
        lie = {
            "teacher_labels": targets[None],
            "student_chunks": batch.index[None],
            "teacher_chunks": batch.index[None],
        }
        batch = Batch(None, targets[None], views={"alignment": lie})
        student, teacher = ({"logits": side["logits"][None]} for side in (student, teacher))
        leaves = {name: value.clone().requires_grad_() for name, value in student.items()}
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = component(Captured(leaves), Captured(dict(teacher)), batch)
    loss = loss.value if isinstance(loss, kdx.Mean) else loss
    learned = [parameter for parameter in component.parameters() if parameter.requires_grad]
    wanted = [*leaves.values(), *learned]
    return loss.detach(), torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("case", ["zero rows", "all zero", "duplicates", "two classes", "batch of one", "gap of 400"])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_finite_and_computed_in_full_precision(random, name, case):
    student, teacher, targets = awkward(random, case)
    classes = student["logits"].shape[1]
    usual_s, usual_t = features(random, 3, classes=classes), features(random, 4, width=4, classes=classes)
    torch.manual_seed(1)
    built = kdx.make("knowledge", name, **OPTIONS.get(name, {}))
    if not built.ready:
        built.setup(*(Captured({key: x.float() for key, x in side.items()}) for side in (usual_s, usual_t)))
    for dtype, autocast in (
        (torch.float32, False),
        (torch.float32, True),
        (torch.float16, False),
        (torch.float16, True),
        (torch.bfloat16, False),
        (torch.bfloat16, True),
    ):
        narrow = [{key: value.to(dtype) for key, value in side.items()} for side in (student, teacher)]
        exact = [{key: value.double() for key, value in side.items()} for side in narrow]
        truth, _ = run(copy.deepcopy(built).double(), *exact, targets)
        loss, gradients = run(copy.deepcopy(built), *narrow, targets, autocast=autocast)
        where = f"in {dtype}, autocast {autocast}: {loss} for {truth}"
        assert loss.dtype == torch.float32, where
        assert loss.isfinite(), where
        assert all(gradient.abs().max() < 1e4 for gradient in gradients), where  # nor does any explode
        assert loss.item() == pytest.approx(truth.item(), rel=1e-4, abs=2e-6), where
