"""Cross-entropy of hard and soft labels, on any class axis."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import kdx
from kdx.tasks import Classification, Segmentation, TokenClassification, cross_entropy

NAN = float("nan")


def test_soft_labels_are_divided_by_the_rows() -> None:
    """Mixup's targets; torch's own mean, and not that over rows and classes."""
    z = torch.randn(4, 100, dtype=torch.float64)
    hard = torch.randint(100, (2, 4))
    mixed = 0.3 * F.one_hot(hard[0], 100).double() + 0.7 * F.one_hot(hard[1], 100).double()
    expected = 0.3 * F.cross_entropy(z, hard[0]) + 0.7 * F.cross_entropy(z, hard[1])
    torch.testing.assert_close(cross_entropy(z, mixed), expected)
    assert cross_entropy.count(mixed) == 4


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"class_weights": [1.0, 0.0, 2.0, 3.0, 0.5]}])
@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 3, 2)])
def test_soft_labels_are_torchs(shape: tuple[int, ...], options: dict) -> None:
    z = torch.randn(shape, dtype=torch.float64)
    y = torch.randn(shape, dtype=torch.float64).softmax(1)
    weight = torch.tensor(options["class_weights"]).double() if "class_weights" in options else None
    wanted = F.cross_entropy(z, y, weight=weight, label_smoothing=options.get("label_smoothing", 0.0))
    torch.testing.assert_close(Classification(**options)(z, y), wanted)


def test_a_soft_label_of_nan_is_none() -> None:
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 4, dtype=torch.float64).softmax(1)
    y[1] = NAN
    task = Classification(label_smoothing=0.1)
    loss = task(z, y)
    torch.testing.assert_close(loss, F.cross_entropy(z[[0, 2]], y[[0, 2]], label_smoothing=0.1))
    assert task.count(y) == 2
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient[1].eq(0).all()
    assert gradient[0].ne(0).any()


def test_soft_labels_reach_a_scheme_in_micro_batches_by_their_rows() -> None:
    model, x = torch.nn.Linear(3, 5), torch.randn(6, 3)
    y = torch.randn(6, 5).softmax(1)
    whole = kdx.Supervised(model)((x, y))
    assert whole.counts["task"] == 6
    torch.testing.assert_close(whole.total, F.cross_entropy(model(x), y))


@pytest.mark.parametrize("soft", [False, True])
def test_the_class_axis_of_three_dimensions_is_an_option(soft: bool) -> None:
    z = torch.randn(4, 7, 5, dtype=torch.float64)  # [N, L, C]
    y = z.roll(1, 0).softmax(2) if soft else torch.randint(5, (4, 7))
    wanted = F.cross_entropy(z.movedim(2, 1), y.movedim(2, 1) if soft else y)
    torch.testing.assert_close(Classification(class_dim=2)(z, y), wanted)
    torch.testing.assert_close(Classification(class_dim=-1)(z, y), wanted)
    turned = Classification(class_dim=1)(z.movedim(2, 1), y.movedim(2, 1) if soft else y)
    torch.testing.assert_close(turned, wanted)
    assert Classification(class_dim=2).count(y) == 28
    with pytest.raises(ValueError, match=r"\[4, 7, 5\] may be \[N, L, C\] or \[N, C, L\].*class_dim"):
        Classification()(z, y)


def test_a_half_precision_sum_over_many_pixels_does_not_overflow() -> None:
    z, y = torch.zeros(1, 8, 256, 256, dtype=torch.float16), torch.zeros(1, 256, 256, dtype=torch.int64)
    assert Segmentation()(z, y).item() == pytest.approx(2.0794, abs=2e-3)


def test_void_pixels_teach_nothing_and_are_in_no_metric() -> None:
    z = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randint(3, (2, 4, 4))
    y[:, 0] = -100
    task = Segmentation()
    loss = task(z, y)
    torch.testing.assert_close(loss, F.cross_entropy(z, y))
    assert task.count(y) == 24
    assert torch.autograd.grad(loss, z)[0][:, :, 0].eq(0).all()
    assert task.responses.void
    assert not Classification().responses.void
    guess = z.detach().argmax(1)
    unions = [((guess == c) | (y == c))[y >= 0].sum() for c in range(3)]
    shares = [((guess == c) & (y == c)).sum() / union for c, union in enumerate(unions) if union]
    metrics = task.metrics(z)
    for metric in metrics.values():
        metric.update(z.detach(), y)
    assert metrics["miou"].compute().item() == pytest.approx(sum(shares).item() / len(shares))
    right = (guess == y)[y >= 0].double().mean().item()
    assert metrics["pixel_accuracy"].compute().item() == pytest.approx(right)


def test_a_class_that_nowhere_occurs_is_not_in_the_mean_iou() -> None:
    z = F.one_hot(torch.tensor([[[0, 1], [1, 1]]]), 4).movedim(3, 1).float()
    metric = Segmentation().metrics(z)["miou"]
    metric.update(z, torch.tensor([[[0, 1], [1, -100]]]))
    assert metric.compute() == 1


def test_another_resolution_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"different resolution: let the model end in F.interpolate\(.*\(8, 8\)\)"):
        Segmentation()(torch.zeros(2, 3, 4, 4), torch.zeros(2, 8, 8, dtype=torch.int64))


def test_tokens_are_judged_without_their_padding() -> None:
    z, y = torch.randn(2, 6, 3, dtype=torch.float64), torch.randint(3, (2, 6))
    y[0, 4:] = y[1, 2:] = -100
    task = TokenClassification()
    torch.testing.assert_close(task(z, y), F.cross_entropy(z[y >= 0], y[y >= 0]))
    made = task.metrics(z)
    assert list(made) == ["accuracy", "f1"]
    for metric in made.values():
        metric.update(z, y)
        metric.update(z[:1], torch.full((1, 6), -100))
    assert made["accuracy"].compute().item() == pytest.approx((z.argmax(2) == y)[y >= 0].double().mean().item())


def test_accuracy_of_soft_labels_is_that_of_their_largest() -> None:
    z, y = torch.eye(3), torch.tensor([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [NAN, NAN, NAN]])
    metric = Classification().metrics(z)["accuracy"]
    metric.update(z, y)
    assert metric.compute() == 0.5


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "error", "message"),
    [
        (Classification(), (4, 3), torch.tensor([0, 1, 3, 0]), ValueError, r"classes 0 \.\. 2, .* got 3"),
        (Classification(), (4, 3), torch.tensor([0, 1, -1, 0]), ValueError, r"classes 0 \.\. 2, .* got -1"),
        (Classification(), (2, 3), torch.tensor([0, 1, 1]), ValueError, r"class numbers of shape \[2\] .* got \[3\]"),
        (Classification(), (2, 3), torch.tensor([[0], [1]]), ValueError, r"of shape \[2\] as targets, got \[2, 1\]"),
        (
            Classification(),
            (2, 3),
            torch.tensor([0, 1]).byte(),
            TypeError,
            r"int64.*got torch.uint8; give targets",
        ),
        (Classification(), (2, 3), torch.tensor([True, False]), TypeError, r"int64.*got torch.bool"),
        (Classification(), (2, 3), torch.tensor([0.0, 1.0]), ValueError, r"soft labels of shape \[2, 3\]"),
        (
            Classification(),
            (2, 2),
            torch.tensor([[1.0, 1.0], [0.0, 1.0]]),
            ValueError,
            "sum to 1 along axis 1, .*of 2",
        ),
        (Classification(), (1, 2), torch.tensor([[1.5, -0.5]]), ValueError, "probabilities that sum to 1.*got -0.5"),
        (Classification(), (4,), torch.tensor([0, 1, 1, 0]), ValueError, "take the task binary for one logit"),
        (Classification(), (2, 3), [0, 1], TypeError, "expected a tensor of classes as targets, got list"),
        (TokenClassification(), (2, 3), torch.tensor([0, 1]), ValueError, "class_dim: expected an axis of outputs"),
    ],
)
def test_what_does_not_belong_together_is_one_sentence(task, outputs, targets, error, message) -> None:
    with pytest.raises(error, match=message):
        task.check(torch.zeros(outputs), targets)


def test_what_belongs_together_passes() -> None:
    Classification().check(torch.zeros(3, 2), torch.tensor([0, 1, -100]))
    Classification().check(torch.zeros(2, 2), torch.tensor([[0.3, 0.7], [NAN, NAN]]))
    Classification().check(torch.zeros(2, 1000), torch.randn(2, 1000).softmax(1).half())
    Classification().check(torch.zeros(2, 2), torch.full((2,), -100))
    Segmentation().check(torch.zeros(2, 2, 3, 3), torch.ones(2, 3, 3, dtype=torch.int64))


def test_a_class_axis_of_the_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="class_dim: axis 0 is that of the samples"):
        Classification(class_dim=0)
