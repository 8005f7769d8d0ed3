"""Losses on labels and their metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kdx
from kdx.experiment.recipe_files import load_recipe
from kdx.tasks import Classification, Embedding, RecallAtOne, triplet


def triplet_oracle(x: np.ndarray, y: np.ndarray, margin: float) -> float:
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    terms = [
        ((x[a] - x[p]) ** 2).sum() - ((x[a] - x[n]) ** 2).sum() + margin
        for a in range(len(x))
        for p in range(len(x))
        for n in range(len(x))
        if a != p and y[a] == y[p] != y[n] and min(y[a], y[n]) >= 0
    ]
    terms = [term for term in terms if term > 0]
    return float(np.mean(terms)) if terms else 0.0


@pytest.mark.parametrize("margin", [0.2, 1.0])
def test_triplet_loss_is_the_mean_over_violating_triples(margin: float) -> None:
    x = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, -100, -100, 3, 0])
    loss = triplet(x, y, margin=margin)
    assert loss.item() == pytest.approx(triplet_oracle(x.detach().numpy(), y.numpy(), margin))
    assert torch.autograd.gradcheck(lambda x: triplet(x, y, margin=margin), x)


def test_triplet_loss_without_a_triple_is_zero_with_zero_gradient() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    for y in (torch.zeros(4, dtype=torch.int64), torch.arange(4), torch.full((4,), -100)):
        loss = triplet(x, y)
        (gradient,) = torch.autograd.grad(loss, x)
        assert loss.item() == 0
        assert gradient.eq(0).all()


def test_recall_at_one_finds_the_nearest_other_sample() -> None:
    x = torch.randn(1500, 8)
    y = torch.randint(5, (1500,))
    metric = RecallAtOne()
    for rows in torch.arange(1500).split(400):
        metric.update(x[rows], y[rows])
    unit = x.double() / x.double().norm(dim=1, keepdim=True)
    near = unit @ unit.T
    near.fill_diagonal_(-2)
    assert metric.compute().item() == pytest.approx((y[near.argmax(1)] == y).double().mean().item(), abs=1e-6)


def test_cross_entropy_is_the_weighted_mean_over_the_labelled_elements() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((12,), (4, 3, 2)):
        logits = torch.randn(shape[0], 5, *shape[1:], generator=generator, dtype=torch.float64)
        targets = torch.randint(5, shape, generator=generator)
        targets[1] = -100
        for options in ({}, {"label_smoothing": 0.1}, {"class_weights": [1.0, 0.0, 2.0, 3.0, 0.5]}):
            given = {"weight": torch.tensor(options["class_weights"]).double()} if "class_weights" in options else {}
            given |= {"label_smoothing": options.get("label_smoothing", 0.0)}
            task = Classification(**options)
            torch.testing.assert_close(task(logits, targets), F.cross_entropy(logits, targets, **given))
            weights = given.get("weight", torch.ones(5))
            assert float(task.count(targets)) == weights[targets[targets >= 0]].sum().item()


def test_the_labels_of_weight_zero_alone_give_zero_with_zero_gradient() -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    task = Classification(class_weights=[1.0, 0.0])
    loss = task(logits, torch.tensor([1, 1, -100]))
    assert loss.item() == task.count(torch.tensor([1, 1, -100])).item() == 0
    assert torch.autograd.grad(loss, logits)[0].eq(0).all()


def test_class_weights_follow_the_dtype_of_the_logits() -> None:
    loss = Classification(class_weights=[1.0, 2.0])(torch.randn(3, 2).bfloat16(), torch.tensor([0, 1, 1]))
    assert loss.dtype == torch.bfloat16


def test_the_task_says_how_wide_the_models_outputs_are() -> None:
    assert kdx.make("task", "classification").outputs(10) == 10
    assert kdx.make("task", "embedding", width=7).outputs(10) == 7


def test_a_scheme_takes_a_task() -> None:
    model = torch.nn.Linear(3, 2)
    batch = kdx.Batch(torch.randn(4, 3), torch.tensor([0, 1, 1, -100]))
    losses = kdx.Supervised(model, task=(0.5, kdx.make("task", "classification", class_weights=[1.0, 3.0])))(batch)
    expected = F.cross_entropy(model(batch.inputs), batch.targets, weight=torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(losses.total, 0.5 * expected)
    assert losses.counts["task"] == 7  # the weights of the three labels, by which micro-batches are combined


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("classification", {"label_smoothing": 1.0}, "label_smoothing must be >= 0 and < 1, got 1.0"),
        ("classification", {"class_weights": [1.0, -1.0]}, "class_weights must be >= 0"),
        ("classification", {"class_weights": [0.0, 0.0]}, "class_weights must not be all 0"),
        ("embedding", {"width": 0}, "width must be an integer >= 1, got 0"),
        ("embedding", {"margin": 0.0}, "margin must be > 0 and <= 4, got 0.0"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kdx.make("task", name, **options)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"task.name": "clasification"}, r"task\.name: there is no task named 'clasification'; did you mean 'class"),
        ({"task.label_smothing": 0.1}, r"task \(classification\): unknown option 'label_smothing'; did you mean"),
        ({"task.name": "embedding", "controls": ["label-smoothing"]}, "label-smoothing needs a task with the option"),
        (
            {"task.name": "embedding", "data.stream": {"phases": 1}, "train.steps": 10, "teacher.train.steps": 10},
            "data.stream: it is tested by the accuracy of one class a sample, which the task 'embedding' has not",
        ),
    ],
    ids=["name", "option", "smoothing", "stream"],
)
def test_a_recipe_with_a_task_that_does_not_suit_is_refused(overrides: dict, message: str) -> None:
    with pytest.raises(kdx.KdxError, match=message):
        load_recipe("fashion-offline", overrides)


def test_a_recipe_gives_the_tasks_options_beside_its_weight() -> None:
    recipe = load_recipe("fashion-offline", {"task": {"name": "embedding", "weight": 0.3, "width": 16}})
    assert (recipe.task.ref, recipe.task.weight) == (kdx.Ref("embedding", width=16), 0.3)
    assert load_recipe("fashion-offline", {"task.class_weights": [1.0] * 10}).task.ref.options == {
        "class_weights": [1.0] * 10
    }


def test_metrics_name_the_one_that_selects() -> None:
    assert isinstance(Embedding().metrics(torch.zeros(2, 3))["recall_at_1"].metric, RecallAtOne)
    assert list(Classification().metrics(torch.zeros(2, 3))) == ["accuracy"]
