"""Where the classes of outputs lie, and which elements teach: for every component that compares outputs."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kdx
from kdx.batch import Batch
from kdx.capture import Captured
from kdx.features import check_same_outputs
from kdx.knowledge import (
    DIST,
    DKD,
    JSD,
    HardTargets,
    Logits,
    LogitStandardisation,
    ReverseKL,
    SigmoidTargets,
    SoftTargets,
)
from kdx.knowledge.response import Outputs
from kdx.losses import Over
from kdx.responses import Form, Responses
from kdx.schemes.task_count import responses_of
from kdx.tasks import Classification, Embedding, MultiLabel

COMPONENTS = [SoftTargets, ReverseKL, JSD, HardTargets, Logits, DIST, LogitStandardisation, DKD]
MASKING = [SoftTargets, ReverseKL, JSD, HardTargets, Logits, DIST, DKD]


def loss_of(component, student, teacher, targets=None):
    return component(Captured({"logits": student}), Captured({"logits": teacher}), Batch(None, targets))


def rows_of(x, dim):
    return x.movedim(dim, -1).reshape(-1, x.shape[dim])


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        (SoftTargets(4.0), 1.7751),
        (ReverseKL(), 1.3250),
        (JSD(), 0.1804),
        (HardTargets(), 0.6931),
        (Logits(variant="paper"), 8.0),
    ],
)
def test_four_dimensions_have_their_classes_on_axis_1(component, expected):
    student, teacher = torch.zeros(1, 2, 1, 1), torch.tensor([[[[4.0]], [[0.0]]]])
    assert round(loss_of(component, student, teacher).item(), 4) == expected


@pytest.mark.parametrize("make", COMPONENTS)
@pytest.mark.parametrize(
    ("shape", "axis", "class_dim"),
    [
        ((4, 5), 1, None),
        ((2, 3, 5), 2, None),
        ((2, 5, 3), 1, 1),
        ((2, 5, 3, 4), 1, None),
        ((2, 3, 4, 5), 3, -1),
        ((2, 5, 2, 3, 2), 1, None),
    ],
)
def test_the_loss_is_that_of_the_elements_as_rows(random, make, shape, axis, class_dim):
    student, teacher = random(*shape, seed=1).requires_grad_(), random(*shape, seed=2)
    elements = shape[:axis] + shape[axis + 1 :]
    targets = torch.arange(torch.Size(elements).numel()).reshape(elements) % 5
    loss = loss_of(make(class_dim=class_dim), student, teacher, targets)
    rows = loss_of(make(), rows_of(student, axis), rows_of(teacher, axis), targets.flatten())
    torch.testing.assert_close(loss, rows, rtol=1e-12, atol=1e-14)
    found, expected = (torch.autograd.grad(each, student, retain_graph=True)[0] for each in (loss, rows))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("make", MASKING)
def test_void_elements_teach_nothing(random, make):
    student, teacher = random(2, 5, 3, 4, seed=1).requires_grad_(), random(2, 5, 3, 4, seed=2)
    teacher[0, :, 0, 0] = 1e4  # must not be looked at
    targets = torch.arange(24).reshape(2, 3, 4) % 5
    targets[0, 0] = -100
    targets[1, :, 2] = -100
    loss = loss_of(make() if make is DKD else make(void=True), student, teacher, targets)
    kept = (targets != -100).flatten()
    s, t = rows_of(student, 1)[kept], rows_of(teacher, 1)[kept]
    torch.testing.assert_close(loss, loss_of(make(), s, t, targets.flatten()[kept]), rtol=1e-12, atol=1e-14)
    (gradient,) = torch.autograd.grad(loss, student)
    assert (gradient.movedim(1, -1)[targets == -100] == 0).all()


@pytest.mark.parametrize("make", MASKING)
def test_nothing_but_void_is_0_with_zero_gradient(random, make):
    student, teacher = random(2, 5, 3, 4, seed=1).requires_grad_(), random(2, 5, 3, 4, seed=2)
    component = make() if make is DKD else make(void=True)
    loss = loss_of(component, student, teacher, torch.full((2, 3, 4), -100))
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss == 0
    assert (gradient == 0).all()


def test_the_task_says_what_minus_100_is(random):
    student, teacher = random(4, 5, seed=1), random(4, 5, seed=2)
    targets = torch.tensor([1, -100, 3, -100])
    component = SoftTargets()
    component.bind(Responses(void=False))
    taught = loss_of(component, student, teacher, targets)
    torch.testing.assert_close(taught, loss_of(SoftTargets(), student, teacher))
    component.bind(Responses(void=True))
    torch.testing.assert_close(
        loss_of(component, student, teacher, targets), loss_of(SoftTargets(), student[::2], teacher[::2])
    )
    overruled = SoftTargets(void=False)
    overruled.bind(Responses(void=True))
    torch.testing.assert_close(loss_of(overruled, student, teacher, targets), taught)


@pytest.mark.parametrize(("shape", "dim"), [((4, 5), 1), ((2, 5, 3, 4), 1), ((2, 6, 5), 2)])
def test_where_soft_labels_are_unknown_the_task_says_too_whether_there_is_something(random, shape, dim):
    student, teacher = random(*shape, seed=1), random(*shape, seed=2)
    targets = random(*shape, seed=3).softmax(dim).movedim(dim, -1).contiguous()
    targets[0, ..., :] = torch.nan
    targets = targets.movedim(-1, dim)
    component = SoftTargets(void=True)
    found = loss_of(component, student, teacher, targets)
    torch.testing.assert_close(found, loss_of(SoftTargets(), student[1:], teacher[1:]))
    rows = student[1:].numel() // 5
    assert component.mean_over(Captured({"logits": student}), Batch(None, targets)) == rows
    taught = loss_of(SoftTargets(void=False), student, teacher, targets)
    torch.testing.assert_close(taught, loss_of(SoftTargets(), student, teacher))


@pytest.mark.parametrize("outputs", [(4,), (4, 1)])
@pytest.mark.parametrize("targets", [torch.tensor([1, -100, 0, 1]), torch.tensor([1.0, torch.nan, 0.0, 1.0])])
def test_void_of_yes_and_no_is_taken_out_and_not_counted(random, outputs, targets):
    student, teacher = random(*outputs, seed=1), random(*outputs, seed=2)
    component, kept = SigmoidTargets(void=True), [0, 2, 3]
    found = loss_of(component, student, teacher, targets)
    torch.testing.assert_close(found, loss_of(SigmoidTargets(), student[kept], teacher[kept]))
    batch = Batch(None, targets)
    over = component.mean_over(Captured({"logits": student}), batch)
    assert (kdx.Supervised(nn.Linear(1, 1)).count(over, batch) if isinstance(over, Over) else over) == 3


def test_void_labels_of_their_own_are_rows_of_which_nothing_is_known(random):
    student, teacher = random(3, 2, seed=1), random(3, 2, seed=2)
    for unknown, kind in ((-100, torch.int64), (torch.nan, torch.float32)):
        targets = torch.tensor([[1, 0], [unknown, unknown], [unknown, 1]], dtype=kind)
        found = loss_of(SigmoidTargets(void=True), student, teacher, targets)
        torch.testing.assert_close(found, loss_of(SigmoidTargets(), student[::2], teacher[::2]))


def test_void_targets_of_numbers_that_do_not_fit_are_refused(random):
    student, teacher = random(3, 2, seed=1), random(3, 2, seed=2)
    with pytest.raises(ValueError, match=r"elements \[3\], and the targets have shape \[3, 1\]"):
        loss_of(Logits(void=True), student, teacher, torch.zeros(3, 1))


def test_what_a_wrapped_component_compares_is_checked_too():
    models = nn.Linear(3, 2), nn.Linear(3, 2)
    with pytest.raises(ValueError, match="'sigmoid-targets' compares them label by label"):
        kdx.Offline(*models, task=MultiLabel(), knowledge={"kd": LogitStandardisation()})
    with pytest.raises(ValueError, match="SigmoidTargets compares outputs of the form 'Bernoulli'"):
        kdx.Offline(*models, knowledge={"kd": LogitStandardisation(around=SigmoidTargets())})


def test_an_undeclared_void_is_asked_about(random):
    student, teacher = random(2, 5, 3, 4, seed=1), random(2, 5, 3, 4, seed=2)
    targets = torch.zeros(2, 3, 4, dtype=torch.int64)
    loss_of(SoftTargets(), student, teacher, targets)  # nothing to ask
    targets[0, 0, 0] = -100
    with pytest.raises(ValueError, match=r"hold -100, and the task does not say .* void=True .* void=False"):
        loss_of(SoftTargets(), student, teacher, targets)


def test_targets_that_fit_another_axis_are_named(random):
    student, teacher = random(2, 5, 7, seed=1), random(2, 5, 7, seed=2)  # [N, C, L], not declared
    with pytest.raises(ValueError, match=r"classes on axis 2 .* targets have shape \[2, 7\]; .* write class_dim=1"):
        loss_of(SoftTargets(), student, teacher, torch.zeros(2, 7, dtype=torch.int64))
    loss_of(SoftTargets(class_dim=1), student, teacher, torch.zeros(2, 7, dtype=torch.int64))
    with pytest.raises(ValueError, match="at the resolution of the outputs"):
        loss_of(SoftTargets(), random(2, 5, 4, 4), random(2, 5, 4, 4), torch.zeros(2, 8, 8, dtype=torch.int64))


@pytest.mark.parametrize("make", [SoftTargets, ReverseKL, JSD, HardTargets, DIST, LogitStandardisation, DKD])
@pytest.mark.parametrize("shape", [(4, 1), (4, 1, 2, 2), (4, 3, 1)])
def test_the_softmax_of_one_class_is_refused(make, shape):
    outputs = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"two classes or more .* teaches nothing.*'binary'.*'sigmoid-targets'"):
        loss_of(make(), outputs, outputs, torch.zeros(shape[0], dtype=torch.int64))


def test_one_value_can_be_regressed():
    assert loss_of(Logits(), torch.zeros(4, 1), torch.ones(4, 1)) == 1


def test_a_class_axis_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"class_dim: expected an axis of outputs of shape \[2, 5\]"):
        loss_of(SoftTargets(class_dim=2), torch.zeros(2, 5), torch.zeros(2, 5))
    with pytest.raises(ValueError, match="other than the batch's, got 0"):
        loss_of(SoftTargets(class_dim=0), torch.zeros(2, 5), torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("task", "axis"), [(F.cross_entropy, 1), (nn.CrossEntropyLoss(), 1), (F.mse_loss, 2), (None, 2)]
)
def test_a_loss_of_torch_by_class_says_where_the_classes_are(task, axis):
    assert responses_of(task).axis((2, 5, 7)) == axis


def test_a_scheme_tells_the_components_and_those_inside_them():
    class Sequences(Classification):
        @property
        def responses(self):
            return Responses(class_dim=1, void=True)

    knowledge = {"kd": SoftTargets(), "std": LogitStandardisation(around=DIST())}
    kdx.Offline(nn.Linear(3, 2), nn.Linear(3, 2), task=Sequences(), knowledge=knowledge)
    for component in (knowledge["kd"], knowledge["std"], knowledge["std"].around):
        assert component.responses == Responses(class_dim=1, void=True)


def test_a_softmax_of_what_are_no_classes_is_refused_at_construction():
    assert Embedding().responses.form is Form.EMBEDDING
    with pytest.raises(ValueError, match=r"knowledge 'kd': SoftTargets .* 'embedding': a relation"):
        kdx.Offline(nn.Linear(3, 2), nn.Linear(3, 2), task=Embedding(), knowledge={"kd": SoftTargets()})
    kdx.Offline(nn.Linear(3, 2), nn.Linear(3, 2), task=Embedding(), knowledge={"mse": Logits()})


class Pixels(Classification):
    """A stand-in for segmentation."""

    @property
    def responses(self):
        return Responses(void=True)


@pytest.mark.parametrize("void", [True, False])
@pytest.mark.parametrize("make", [SoftTargets, Logits, HardTargets])
def test_parts_of_a_batch_add_up(random, make, void):
    """The count says what the loss is a mean over: pixels, without the void ones if they teach nothing."""
    student = nn.Conv2d(2, 5, 1).double()
    scheme = kdx.Offline(student, nn.Conv2d(2, 5, 1).double(), task=(0.5, Pixels()), knowledge={"kd": make(void=void)})
    inputs, targets = random(6, 2, 3, 4, seed=3), torch.arange(72).reshape(6, 3, 4) % 5
    targets[0, :2] = -100
    targets[4, :, 1] = -100
    whole = scheme(Batch(inputs, targets))
    parts = [scheme(Batch(inputs[rows], targets[rows])) for rows in (slice(2), slice(2, 6))]
    for name in ("kd", "task"):
        count = sum(float(part.counts[name]) for part in parts)
        together = sum(float(part.counts[name]) * part.terms[name] for part in parts) / count
        torch.testing.assert_close(together, whole.terms[name], rtol=1e-12, atol=0)
        assert float(whole.counts[name]) == count
    assert whole.over["kd"] is (Over.LABELLED if void else Over.ELEMENTS)


def test_tokens_without_targets_count_by_themselves(random):
    component = SoftTargets()
    assert component.mean_over(Captured({"logits": random(2, 7, 5)}), Batch(None)) == 14
    assert component.mean_over(Captured({"logits": random(2, 5)}), Batch(None)) is Over.ROWS


def test_a_component_of_ones_own_writes_compare(random):
    class Brier(kdx.knowledge.Response):
        def compare(self, outputs: Outputs):
            student, teacher = (side.softmax(1) for side in outputs.rows())
            return (student - teacher).square().sum(1).mean()

    student, teacher = random(2, 5, 3, 4, seed=1), random(2, 5, 3, 4, seed=2)
    expected = (student.softmax(1) - teacher.softmax(1)).square().sum(1).mean()
    torch.testing.assert_close(loss_of(Brier(), student, teacher), expected)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(ignore_index=255), partial(F.nll_loss, ignore_index=255)])
def test_another_ignored_target_than_minus_100_is_asked_about(loss):
    models = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 1)
    for component in (SoftTargets(), SoftTargets(void=True), DKD(), LogitStandardisation()):
        with pytest.raises(ValueError, match=r"knowledge 'kd': .* ignore_index=255, .*targets == 255\] = -100"):
            kdx.Offline(*models, task=loss, knowledge={"kd": component})
    kdx.Offline(*models, task=loss, knowledge={"kd": SoftTargets(void=False)})


@pytest.mark.parametrize(
    "name",
    [
        "soft-targets",
        "hard-targets",
        "dkd",
        "dist",
        "logits",
        "reverse-kl",
        "jsd",
        "skew-kl",
        "adaptive-kl",
        "alpha-beta",
        "sigmoid-targets",
        "margin-mse",
        "irg",
        "logit-standardisation",
    ],
)
def test_models_of_other_classes_are_one_sentence_with_the_ways_out(name) -> None:
    component = kdx.make("knowledge", name)
    scheme = kdx.Offline(nn.Linear(4, 3), nn.Linear(4, 5), task=None, knowledge={"kd": component})
    message = (
        r"knowledge 'kd' .* expected the student's shape \[8, 3\], got \[8, 5\]: 3 classes and 5 on axis 1 .*; "
        r"give both models the same classes, pick .* \(teacher_output=lambda out: out\[:, classes\]\), or take "
    )
    with pytest.raises(ValueError, match=message):
        kdx.fit(scheme, [(torch.randn(8, 4), torch.arange(8) % 3)], device="cpu")


def test_the_classes_of_the_student_can_be_picked_in_the_teacher() -> None:
    knowledge = {"kd": kdx.SoftTargets(4.0)}
    scheme = kdx.Offline(
        nn.Linear(4, 3), nn.Linear(4, 5), knowledge=knowledge, teacher_output=lambda out: out[:, [0, 2, 4]]
    )
    assert kdx.fit(scheme, [(torch.randn(8, 4), torch.arange(8) % 3)], device="cpu").step == 1


@pytest.mark.parametrize(
    ("student", "teacher", "dim", "message"),
    [
        ((2, 4, 3), (2, 4, 5), None, r"3 classes and 5 on axis 2 .* out\[:, :, classes\]"),
        ((2, 3, 4, 4), (2, 5, 4, 4), None, r"3 classes and 5 on axis 1"),
        ((2, 3, 4), (2, 5, 4), 1, r"3 classes and 5 on axis 1"),
        ((2, 3, 4, 4), (2, 3, 8, 8), None, "both need the same rows and classes"),
        ((2, 3), (4, 3), None, "both need the same rows and classes"),
    ],
)
def test_other_classes_and_other_elements_are_told_apart(student, teacher, dim, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_same_outputs(torch.zeros(student), torch.zeros(teacher), dim)


PADDED = ["soft-targets", "hard-targets", "reverse-kl", "jsd", "logits", "dkd", "nkd", "dist", "mlld", "ctkd"]
PADDED += ["skew-kl", "adaptive-kl", "alpha-beta"]


@pytest.mark.parametrize("name", [*PADDED, "logit-standardisation"])
def test_a_vocabulary_that_both_pad_is_compared_without_its_padding(name) -> None:
    torch.manual_seed(0)
    s, t = torch.randn(6, 9, dtype=torch.float64, requires_grad=True), torch.randn(6, 12, dtype=torch.float64)
    batch = kdx.Batch(None, torch.arange(6))
    padded = kdx.make("knowledge", name, vocabulary=7)
    found = padded(Captured({"logits": s}), Captured({"logits": t}), batch)
    (gradient,) = torch.autograd.grad(found, s)
    same = kdx.make("knowledge", name)
    expected = same(Captured({"logits": s[:, :7]}), Captured({"logits": t[:, :7]}), batch)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, s)[0])
    assert gradient[:, :7].any()
    assert not gradient[:, 7:].any()


def test_vocabularies_of_two_sizes_are_refused_with_the_option_that_says_what_they_share() -> None:
    s, t = Captured({"logits": torch.zeros(2, 4, 9)}), Captured({"logits": torch.zeros(2, 4, 12)})
    message = r"9 classes and 12 on axis 2 cannot be compared .* write vocabulary=n, the number of its tokens"
    with pytest.raises(ValueError, match=message):
        kdx.SoftTargets(1.0)(s, t, None)
    with pytest.raises(ValueError, match=r"the first 10 classes .* the student has 9 on axis 2"):
        kdx.SoftTargets(1.0, vocabulary=10)(s, t, None)
    with pytest.raises(ValueError, match=r"vocabulary must be an integer >= 2, got 1"):
        kdx.SoftTargets(1.0, vocabulary=1)
    with pytest.raises(ValueError, match=r"around=.* has its own temperature, .* vocabulary"):
        kdx.make("knowledge", "logit-standardisation", around="dkd", vocabulary=7)


def test_a_teacher_with_another_tokenizer_is_refused_with_the_components_that_learn_from_one():
    task = kdx.make("task", "causal-lm")
    for length, message in (
        (6, "take uld or alm"),
        (7, r"expected outputs at the student's 6 places.* take uld or alm"),
    ):
        student, teacher = Captured({"logits": torch.zeros(2, 6, 9)}), Captured({"logits": torch.zeros(2, length, 12)})
        component = kdx.SoftTargets()
        component.bind(task.responses)
        with pytest.raises(ValueError, match=message):
            component(student, teacher, Batch(None, torch.zeros(2, 6, dtype=torch.int64)))
