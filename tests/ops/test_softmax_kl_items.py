"""softmax_kl: what its means divide by, and the dtype that its gradients are kept in."""

from __future__ import annotations

import pytest
import torch

from kdx.ops import softmax_kl


def pair(rows: int = 12, classes: int = 7):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(rows, classes, generator=generator).requires_grad_(),
        torch.randn(rows, classes, generator=generator),
    )


@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
@pytest.mark.parametrize("rows_of", ["all", "masked", "weighted"])
def test_micro_batches_with_the_items_of_all_are_one_batch(backend, reduction, rows_of) -> None:
    student, teacher = pair()
    mask = torch.arange(12) % 3 != 0 if rows_of == "masked" else None
    weight = torch.linspace(0, 1, 12) if rows_of == "weighted" else None
    items = torch.tensor(12 if mask is None else int(mask.sum()))
    options = {"reduction": reduction, "temperature": 2.0, "backend": backend}
    whole = softmax_kl(student, teacher, mask=mask, weight=weight, **options)
    parts = [
        softmax_kl(
            *(student[at], teacher[at]),
            mask=None if mask is None else mask[at],
            weight=None if weight is None else weight[at],
            num_items=count,
            **options,
        )
        for at, count in ((slice(0, 9), items), (slice(9, 12), int(items)))
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)
    found, want = (torch.autograd.grad(x, student)[0] for x in (sum(parts), whole))
    assert torch.allclose(found, want, rtol=1e-5, atol=1e-9)


def saved(loss_of) -> list[torch.dtype]:
    """The dtypes of two-dimensional tensors that a loss keeps for its backward pass, beside its two inputs."""
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        loss_of()
    return [x.dtype for x in kept if x.dim() == 2][2:]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_are_kept_narrow_and_handed_on_as_autograd_allows(backend, dtype) -> None:
    student, teacher = pair()
    options = {"temperature": 2.0, "backend": backend}
    assert saved(lambda: softmax_kl(student, teacher, **options)) == [torch.float32]
    kept = [] if dtype == torch.float16 else [dtype]  # float16 is made behind the loss scale
    assert saved(lambda: softmax_kl(student, teacher, **options, grad_dtype=dtype)) == kept
    (wide,) = torch.autograd.grad(softmax_kl(student, teacher, **options), student)
    for reduction, upstream, scale in (("batchmean", 1.0, 1.0), ("batchmean", 8.0, 8.0), ("none", 1 / 12, 1.0)):
        loss = softmax_kl(student, teacher, **options, reduction=reduction, grad_dtype=dtype)
        (found,) = torch.autograd.grad(loss, student, torch.full_like(loss, upstream))
        assert found.dtype == torch.float32
        assert found.equal(found.to(dtype).float())  # it has been narrow
        assert torch.allclose(found, scale * wide, rtol=torch.finfo(dtype).eps)
    leaf = student.detach().requires_grad_()
    leaf.grad_dtype = dtype
    softmax_kl(leaf, teacher, **options, grad_dtype=dtype).backward()
    assert leaf.grad.dtype == dtype
    assert leaf.grad.equal(wide.to(dtype))


def test_a_narrow_gradient_compiles_whole() -> None:
    student, teacher = pair()

    def step(x):
        return 3 * softmax_kl(x, teacher, num_items=torch.tensor(5.0), grad_dtype=torch.bfloat16)

    (want,) = torch.autograd.grad(step(student), student)
    (found,) = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(student), student)
    assert torch.allclose(found, want, rtol=torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_items": 0}, ValueError, "num_items: expected a number above 0, got 0"),
        ({"num_items": torch.ones(2)}, ValueError, r"num_items: expected one number, got a tensor \[2\]"),
        ({"num_items": 3, "reduction": "sum"}, ValueError, "num_items: is what the mean divides by"),
        ({"grad_dtype": torch.int8}, TypeError, "grad_dtype: expected a floating-point dtype"),
    ],
)
def test_bad_options_are_sentences(options, error, message) -> None:
    with pytest.raises(error, match=message):
        softmax_kl(*pair(), **options)
