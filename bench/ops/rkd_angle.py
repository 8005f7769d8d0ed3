"""rkd_angle: the angle-wise loss of N points, D = 512, against its authors' formula in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from bench import rkd_authors
from bench.registry import Case, Inputs, OpBench, Provider, backend
from kdx.ops import rkd_angle

DEPTH = 512
CPU = (64, 128, 256, 1024)
GPU = (64, 128, 256, 1024, 4096)
EAGER_BYTES = 4 << 30


def cases(device: str) -> list[Case]:
    return [Case(f"{n}x{DEPTH}", torch.float32, "normal", {"N": n}) for n in (CPU if device == "cpu" else GPU)]


def make(case: Case, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(case.options["N"], DEPTH, generator=generator).to(device) for _ in range(2))
    return student.requires_grad_(), teacher


def truth(student: Tensor, teacher: Tensor) -> Tensor:
    """In float64, by the CPU kernel: the tests hold it to the authors' definition, and plain PyTorch takes minutes."""
    return rkd_angle(student.cpu(), teacher.cpu(), backend="auto").to(student.device)


def providers(device: str) -> list[Provider]:
    names = ("triton", "cuda") if device == "cuda" else ("cpu",)
    eager = Provider("eager", rkd_authors.rkd_angle, _too_large)
    return [eager, *(backend("rkd_angle", name, rkd_angle) for name in names)]


def _too_large(inputs: Inputs) -> str | None:
    n, d = inputs[0].shape
    needed = rkd_authors.angle_bytes(n, d)
    return None if needed <= EAGER_BYTES else f"needs {needed / 1e9:.0f} GB for {n} points"


def least_bytes(case: Case, backward: bool) -> int:
    """Both inputs read once, the gradient written once; but the work is arithmetic, so shares of a copy say little."""
    return case.options["N"] * DEPTH * 4 * (3 if backward else 2)


def tolerance(case: Case, provider: str) -> tuple[float, float]:
    """Eager distances come from a Gram matrix, which loses digits; its errors stand in the row."""
    return (2e-6, 4e-6) if provider.startswith("kdx") else (1e-4, 1e-3)


BENCH = OpBench(
    op="rkd_angle",
    cases=cases,
    make=make,
    truth=truth,
    providers=providers,
    least_bytes=least_bytes,
    tolerance=tolerance,
    sweep=("points N", lambda case: case.options["N"]),
)
