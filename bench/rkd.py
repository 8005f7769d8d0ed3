"""What the benchmarks of the relational losses share: D = 512, and their authors' formula in eager PyTorch beside."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.registry import Case, Inputs, OpBench, Provider, backend

DEPTH = 512


def bench(
    op: str,
    ours: Callable[..., Tensor],
    authors: Callable[..., Tensor],
    cpu: tuple[int, ...],
    gpu: tuple[int, ...],
    too_large: Callable[[Inputs], str | None] = lambda inputs: None,
) -> OpBench:
    """The benchmark of one loss at these numbers of points; `too_large`: why the authors' formula is left out."""

    def cases(device: str) -> list[Case]:
        sizes = cpu if device == "cpu" else gpu
        return [Case(f"{n}x{DEPTH}", torch.float32, "normal", {"N": n}) for n in sizes]

    def truth(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        # By the CPU kernel: the tests hold it to the authors' definition, and plain PyTorch takes minutes.
        x = student.detach().cpu().double().requires_grad_()
        loss = ours(x, teacher.cpu().double(), backend="cpu")
        (grad,) = torch.autograd.grad(loss, x)
        return loss.detach().to(student.device), grad.to(student.device)

    def providers(device: str) -> list[Provider]:
        names = ("triton", "cuda") if device == "cuda" else ("cpu",)
        return [Provider("eager", authors, too_large), *(backend(op, name, ours) for name in names)]

    return OpBench(
        op=op,
        cases=cases,
        make=_make,
        truth=truth,
        providers=providers,
        least_bytes=_least_bytes,
        tolerance=_tolerance,
        sweep=("points N", lambda case: case.options["N"]),
    )


def _make(case: Case, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(case.options["N"], DEPTH, generator=generator).to(device) for _ in range(2))
    return student.requires_grad_(), teacher


def _least_bytes(case: Case, backward: bool) -> int:
    """Both inputs read once, the gradient written once; but the work is arithmetic, so shares of a copy say little."""
    return case.options["N"] * DEPTH * 4 * (3 if backward else 2)


def _tolerance(case: Case, provider: str) -> tuple[float, float]:
    """Eager distances come from a Gram matrix, which loses digits; its errors stand in the row."""
    return (2e-6, 4e-6) if provider.startswith("kdx") else (1e-4, 1e-3)
