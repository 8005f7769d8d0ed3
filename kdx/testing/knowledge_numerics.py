"""Checks of a knowledge component's numbers: derivatives, half precision, autocast and compiled graphs."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck
from torch.func import functional_call

from kdx.knowledge.base import Knowledge
from kdx.testing.check import fail, require
from kdx.testing.samples import Sample, draw, loss_and_gradients, prepared, value_of
from kdx.testing.tags import KnowledgeTags

# Budgets of everything that computes in float32; half-precision features cost their own rounding and nothing else.
LOSS_RTOL, LOSS_ATOL = 2e-5, 2e-6
GRADIENT_ATOL = 1e-6
GRADIENT_RTOL = {torch.float32: 5e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def check_gradient_is_right(component: Knowledge, tags: KnowledgeTags) -> None:
    """In float64 its gradients, in the student's features and in its own parameters, are finite and those of its
    values.
    """
    sample = draw(component, tags, torch.float64)
    ready = prepared(component, sample, torch.float64)
    _, gradients = loss_and_gradients(ready, sample)  # what is fixed by the first training batch is fixed now
    for name, gradient in gradients.items():
        require(bool(gradient.isfinite().all()), f"in training mode the gradient in {name!r} is not finite")
    ready.eval()  # so that a call changes no state
    names = list(sample.student)
    own = {name: value for name, value in ready.named_parameters() if value.requires_grad}

    def loss(*tensors: Tensor) -> Any:
        student = sample.student.having(dict(zip(names, tensors, strict=False)))
        parameters = dict(zip(own, tensors[len(names) :], strict=True))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return value_of(functional_call(ready, parameters, (student, sample.teacher, sample.batch)))

    inputs = [value.clone().requires_grad_() for value in (*sample.student.values(), *own.values())]
    try:
        gradcheck(loss, inputs, fast_mode=True)
    except GradcheckError as error:
        fail(f"torch.autograd.gradcheck: {' '.join(str(error).split())[:400]}")


def check_half_precision(component: Knowledge, tags: KnowledgeTags) -> None:
    """Features in bfloat16 and float16 give the float32 loss of their rounded values, and gradients rounded once."""
    for dtype in (torch.bfloat16, torch.float16):
        _check_precision(component, tags, dtype)


def check_autocast(component: Knowledge, tags: KnowledgeTags) -> None:
    """Under autocast to bfloat16 and to float16, with features in float32 and in that dtype, loss and gradients are as
    exact as without.
    """
    for half in (torch.bfloat16, torch.float16):
        for dtype in (torch.float32, half):
            _check_precision(component, tags, dtype, autocast=half)


def _check_precision(
    component: Knowledge, tags: KnowledgeTags, dtype: torch.dtype, *, autocast: torch.dtype | None = None
) -> None:
    narrow = draw(component, tags, dtype)
    single = prepared(component, narrow)
    expected, wanted = loss_and_gradients(copy.deepcopy(single).double(), narrow.to(torch.float64))
    loss, gradients = loss_and_gradients(single, narrow, autocast=autocast)
    where = f"features in {dtype}" + (f" under autocast to {autocast}" if autocast else "")
    require(loss.dtype == torch.float32, f"{where}: the loss is {loss.dtype}; compute in float32 (x.float())")
    require(
        torch.allclose(loss.double(), expected, rtol=LOSS_RTOL, atol=LOSS_ATOL),
        f"{where}: the loss is {loss.item():.8g}, in float64 {expected.item():.8g}; compute in float32, outside of "
        "autocast",
    )
    for name, gradient in gradients.items():
        require(gradient.dtype == dtype, f"{where}: the gradient in {name!r} is {gradient.dtype}")
        error = (gradient.double() - wanted[name]).norm().item()
        budget = GRADIENT_RTOL[dtype] * wanted[name].norm().item() + GRADIENT_ATOL
        require(error <= budget, f"{where}: the gradient in {name!r} is off by {error:.3g}, the budget is {budget:.3g}")


def check_compiles(component: Knowledge, tags: KnowledgeTags) -> None:
    """It compiles into one graph (``torch.compile(fullgraph=True)``) with the same loss and gradients."""
    sample = draw(component, tags, torch.float64)
    ready = prepared(component, sample, torch.float64)
    expected, wanted = loss_and_gradients(copy.deepcopy(ready), sample)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # torch's own tracer instantiates the autograd functions it meets
        warnings.filterwarnings("ignore", ".*Function.* should not be instantiated", DeprecationWarning)
        torch.manual_seed(0)
        loss, gradients = _compiled(ready, sample)
    require(
        torch.allclose(loss, expected, rtol=1e-10, atol=1e-12),
        f"the loss is {expected.item()!r}, compiled {loss.item()!r}",
    )
    for name, gradient in gradients.items():
        require(
            torch.allclose(gradient, wanted[name], rtol=1e-8, atol=1e-10), f"compiled, the gradient in {name!r} differs"
        )


def _compiled(component: Knowledge, sample: Sample) -> tuple[Tensor, dict[str, Tensor]]:
    student, teacher, batch = sample

    def loss_of(s: dict[str, Tensor], t: dict[str, Tensor]) -> Any:
        return value_of(component(student.having(s), teacher.having(t), batch))

    torch.compiler.reset()
    leaves = {name: value.detach().clone().requires_grad_() for name, value in student.items()}
    loss = torch.compile(loss_of, fullgraph=True, backend="aot_eager")(leaves, dict(teacher))
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return loss.detach(), dict(zip(leaves, found, strict=True))
