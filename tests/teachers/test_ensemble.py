"""Several teachers as one: what is averaged, and with which weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kdx
from kdx.batch import Batch
from kdx.capture import Captured
from kdx.errors import CaptureError
from kdx.schemes import DenseGuidance
from kdx.teachers import Ensemble
from kdx.teachers.ensemble import confidence


def members(net) -> dict:
    return {"a": net(3), "b": net(4), "c": net(5)}


def logits_of(ensemble: Ensemble, batch: Batch) -> np.ndarray:
    return np.stack([member(batch).logits.double().numpy() for member in ensemble.members.values()])


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("weights", ["equal", {"a": 1.0, "b": 0.0, "c": 3.0}])
def test_logits_and_probabilities_are_averaged_by_their_weights(net, batch, weights) -> None:
    shares = np.full(3, 1 / 3) if weights == "equal" else np.array([0.25, 0.0, 0.75])
    ensemble = Ensemble(members(net), weights=weights)
    z = logits_of(ensemble, batch)
    expected = (shares[:, None, None] * z).sum(0)
    torch.testing.assert_close(ensemble(batch).logits.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)

    ensemble = Ensemble(
        {name: member.model for name, member in ensemble.members.items()},
        weights=weights,
        over="probabilities",
        temperature=3.0,
    )
    found = softmax(ensemble(batch).logits.double().numpy() / 3)
    np.testing.assert_allclose(found, (shares[:, None, None] * softmax(z / 3)).sum(0), rtol=1e-5)


def test_rows_weigh_a_teacher_by_its_cross_entropy_and_equally_without_a_label(net, batch) -> None:
    targets = batch.targets.clone()
    targets[5:] = -100
    batch = Batch(batch.inputs, targets)
    ensemble = Ensemble(members(net), weights="confidence", over="probabilities")
    z = logits_of(ensemble, batch)
    p = softmax(z)
    expected = p.mean(0)
    for row in range(5):
        inverse = 1 / p[:, row, int(targets[row])]  # exp of the cross-entropy
        weights = (1 - inverse / inverse.sum()) / 2
        assert weights.sum() == pytest.approx(1)
        expected[row] = (weights[:, None] * p[:, row]).sum(0)
    np.testing.assert_allclose(softmax(ensemble(batch).logits.double().numpy()), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"needs batch\.targets"):
        ensemble(Batch(batch.inputs))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_of_confident_teachers_have_the_gradient_of_ca_mkd(net, batch, temperature) -> None:
    ensemble = Ensemble(members(net), weights="confidence", over="probabilities", temperature=temperature).double()
    batch = Batch(batch.inputs.double(), batch.targets)
    answer = ensemble(batch)
    student = torch.randn(answer.logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()
    kdx.SoftTargets(temperature)(Captured({"logits": student}), answer, batch).backward()

    z, y = logits_of(ensemble, batch), batch.targets.numpy()  # sum_k w_k T^2 KL(p_k || q), by its gradient T (q - p_k)
    inverse = 1 / softmax(z)[:, np.arange(len(y)), y]  # exp of the cross-entropy
    weights = (1 - inverse / inverse.sum(0)) / 2
    gap = softmax(student.detach().numpy() / temperature) - softmax(z / temperature)
    expected = temperature * (weights[..., None] * gap).sum(0) / len(y)
    np.testing.assert_allclose(student.grad, expected, rtol=1e-6, atol=1e-9)


def test_a_teacher_that_is_sure_and_wrong_weighs_nothing() -> None:
    logits = torch.tensor([[[500.0, 0.0]], [[0.0, 500.0]], [[0.0, 0.0]]])
    assert confidence(logits, torch.tensor([1])).flatten().tolist() == [0.0, 0.5, 0.5]


def test_layers_and_logits_of_one_member_are_read_by_its_name(net, batch) -> None:
    teachers = members(net)
    distil = kdx.Offline(
        net(4),
        Ensemble(teachers),
        knowledge={
            "all": kdx.SoftTargets(2.0),
            "one": kdx.SoftTargets(2.0, teacher="a/logits"),
            "hint": kdx.Hint(student="conv", teacher="b/conv"),
            "glob": kdx.Hint(student="c*v", teacher="c/c*v"),
        },
    )
    distil.setup(batch)
    terms = distil.eval()(batch).terms
    with torch.no_grad():
        z_s, z_t = distil.student(batch.inputs) / 2, teachers["a"](batch.inputs) / 2
        one = 4 * torch.nn.functional.kl_div(z_s.log_softmax(1), z_t.softmax(1), reduction="batchmean")
    torch.testing.assert_close(terms["one"], one)
    assert distil.knowledge["hint"].adapters[0].weight.shape[:2] == (4, 4)
    assert distil.knowledge["glob"].adapters[0].weight.shape[:2] == (5, 4)
    before = [value.clone() for model in teachers.values() for value in model.state_dict().values()]
    distil.train()
    distil(batch).total.backward()
    assert all(parameter.grad is None for model in teachers.values() for parameter in model.parameters())
    after = [value for model in teachers.values() for value in model.state_dict().values()]
    assert all(a.equal(b) for a, b in zip(before, after, strict=True))
    assert not [name for name in distil.state_dict() if name.startswith("teacher")]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda net: Ensemble({"a": net()}), ValueError, "at least two teachers"),
        (lambda net: Ensemble({"a.b": net(), "c": net()}), ValueError, r"the name 'a.b' is not allowed"),
        (lambda net: Ensemble(members(net), weights="best"), ValueError, "weights must be 'equal', 'confidence'"),
        (
            lambda net: Ensemble(members(net), weights={"a": 1, "b": 1}),
            ValueError,
            "one number for each",
        ),
        (lambda net: Ensemble(members(net), weights={"a": 0, "b": 0, "c": 0}), ValueError, "weights must not be all 0"),
        (lambda net: Ensemble(members(net), over="odds"), ValueError, "over must be 'logits' or 'probabilities'"),
        (lambda net: Ensemble(members(net), temperature=0), ValueError, "temperature must be > 0"),
        (lambda net: Ensemble(members(net)).tap(["conv"]), CaptureError, r"must be 'logits' or '<teacher>/<tap>'"),
    ],
)
def test_bad_arguments_say_what_was_expected(net, build, error, message) -> None:
    with pytest.raises(error, match=message):
        build(net)


@pytest.mark.parametrize("over", ["logits", "probabilities"])
@pytest.mark.parametrize("weights", ["equal", "confidence"])
@pytest.mark.parametrize(
    ("shape", "axis", "class_dim"), [((2, 4, 3, 5), 1, None), ((2, 6, 4), 2, None), ((2, 4, 6), 1, 1)]
)
def test_dense_logits_are_combined_element_by_element(over, weights, shape, axis, class_dim) -> None:
    class Given(torch.nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = logits

        def forward(self, inputs):
            return self.logits

    def combined(logits, targets, **options):
        ensemble = Ensemble({"a": Given(logits[0]), "b": Given(logits[1])}, weights=weights, over=over, **options)
        return ensemble(Batch(None, targets)).logits

    given = [torch.from_numpy(np.random.default_rng(seed).normal(0, 2, shape)) for seed in (1, 2)]
    elements = shape[:axis] + shape[axis + 1 :]
    targets = torch.arange(torch.Size(elements).numel()).reshape(elements) % 4
    targets[0, 0] = -100
    found = combined(given, targets, class_dim=class_dim)
    rows = combined([each.movedim(axis, -1).reshape(-1, 4) for each in given], targets.flatten())
    torch.testing.assert_close(found.movedim(axis, -1).reshape(-1, 4), rows)


@pytest.mark.parametrize("way", ["alone", "among others", "inside another"])
def test_the_task_of_a_scheme_says_where_the_classes_of_an_ensemble_are(way) -> None:
    def conv():
        return torch.nn.Conv1d(1, 3, 1)

    def scheme(make, teacher):
        knowledge = {"kd": kdx.SoftTargets(4.0)}
        return make(conv(), teacher, task=kdx.make("task", "segmentation"), knowledge=knowledge)

    ensemble = Ensemble({"a": conv(), "b": conv()}, over="probabilities", temperature=4.0)
    if way == "alone":
        scheme(kdx.Offline, ensemble)
    elif way == "among others":
        scheme(DenseGuidance, {"all": ensemble})
    else:
        scheme(kdx.Offline, Ensemble({"own": ensemble, "other": conv()}))
    batch = Batch(torch.randn(2, 1, 5))
    softened = [(member(batch).logits / 4).softmax(1) for member in ensemble.members.values()]
    torch.testing.assert_close(ensemble(batch).logits, 4 * (sum(softened) / 2).log())


def test_the_option_of_an_ensemble_goes_before_what_the_task_says() -> None:
    ensemble = Ensemble({"a": torch.nn.Conv1d(1, 3, 1), "b": torch.nn.Conv1d(1, 3, 1)}, class_dim=2)
    kdx.Offline(torch.nn.Conv1d(1, 3, 1), ensemble, task=kdx.make("task", "segmentation"))
    assert ensemble.responses.class_dim == 2


def test_members_of_different_shapes_are_refused() -> None:
    ensemble = Ensemble({"a": torch.nn.Linear(3, 2), "b": torch.nn.Linear(3, 4)})
    with pytest.raises(ValueError, match=r"one shape to be combined, got \{'a': \[5, 2\], 'b': \[5, 4\]\}"):
        ensemble(Batch(torch.zeros(5, 3)))
