"""topk_kl: KL against the K most probable classes of the teacher and all others as one, batch mean.

Two providers compute another loss of the same logits, as yardsticks: the cross-entropy of labels, one pass over them,
and softmax_kl, which needs the teacher's logits of all classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.registry import Case, Inputs, OpBench, Provider, backend
from kdx.ops import SparseTargets, softmax_kl, topk_kl

CPU_SHAPES = [(4096, 1000, 8), (512, 32000, 8), (512, 32000, 32), (512, 32000, 64), (1024, 49152, 32), (64, 128256, 32)]
GPU_SHAPES = [(4096, 32768, 32), (4096, 131072, 32), (4096, 131072, 64)]
TRUTH_LOGITS = 1 << 24  # worked on at once for the float64 truth
OTHER_LOSSES = ("cross-entropy", "softmax_kl")


def cases(device: str) -> list[Case]:
    shapes, dtypes = (
        (CPU_SHAPES, (torch.float32, torch.bfloat16)) if device == "cpu" else (GPU_SHAPES, (torch.bfloat16,))
    )
    return [
        Case(f"{N}x{C} top {K}", dtype, data, {"N": N, "C": C, "K": K})
        for N, C, K in shapes
        for dtype in dtypes
        for data in (("spread", "labels") if K == 32 else ("spread",))
    ]


def make(case: Case, device: torch.device) -> Inputs:
    """Logits, the teacher's classes and their log-probabilities, its logits, and labels, none of them for "spread"."""
    generator = torch.Generator(device).manual_seed(0)
    N, C, K = (case.options[name] for name in "NCK")
    student = 3 * torch.randn(N, C, generator=generator, device=device)
    teacher = student + torch.randn(N, C, generator=generator, device=device)
    logprobs, ids = torch.log_softmax(teacher, -1).topk(K, -1)
    labels = torch.randint(C, (N,), generator=generator, device=device)
    kept = labels if case.data == "labels" else labels[:0]
    return student.to(case.dtype).requires_grad_(), ids, logprobs, teacher.to(case.dtype), kept


def eager(student: Tensor, ids: Tensor, logprobs: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    log_q = F.log_softmax(student.float(), -1)
    listed = log_q.gather(1, ids)
    both = [torch.cat([x, _rest(x)], 1) for x in (listed, logprobs)]
    loss = F.kl_div(*both, reduction="batchmean", log_target=True)
    return 0.5 * loss + 0.5 * F.nll_loss(log_q, labels) if labels.numel() else loss


def _rest(listed: Tensor) -> Tensor:
    return torch.log1p(-listed.exp().sum(1, keepdim=True).clamp(max=1 - 1e-6))


def cross_entropy(student: Tensor, ids: Tensor, logprobs: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(student.float(), labels if labels.numel() else ids[:, 0])


def dense(student: Tensor, ids: Tensor, logprobs: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return softmax_kl(student, teacher)


def ours(student: Tensor, ids: Tensor, logprobs: Tensor, teacher: Tensor, labels: Tensor, backend: str) -> Tensor:
    mixed = {"labels": labels, "alpha": 0.5} if labels.numel() else {}
    return topk_kl(student, SparseTargets(ids, logprobs), backend=backend, **mixed)


def truth(student: Tensor, ids: Tensor, logprobs: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """By the reference, some rows at a time."""
    N, C = student.shape
    rows = max(1, TRUTH_LOGITS // C)
    loss = torch.zeros((), dtype=torch.float64, device=student.device)
    grad = torch.empty((N, C), dtype=torch.float64, device=student.device)
    for start in range(0, N, rows):
        part = slice(start, start + rows)
        x = student[part].detach().double().requires_grad_()
        mixed = {"labels": labels[part], "alpha": 0.5} if labels.numel() else {}
        targets = SparseTargets(ids[part], logprobs[part].double())
        value = topk_kl(x, targets, reduction="sum", backend="reference", **mixed)
        loss += value.detach()
        grad[part] = torch.autograd.grad(value, x)[0]
    return loss / N, grad.div_(N)


def providers(device: str) -> list[Provider]:
    found = [Provider("eager", eager), Provider("torch.compile", torch.compile(eager, dynamic=False))]
    found += [Provider(name, function) for name, function in zip(OTHER_LOSSES, (cross_entropy, dense), strict=True)]
    names = ("triton", "cuda") if device == "cuda" else ("cpu",)
    return [*found, *(backend("topk_kl", name, ours) for name in names)]


def least_bytes(case: Case, backward: bool) -> int:
    """The student's logits read once and their gradient written once; the few classes are nothing beside them."""
    return case.options["N"] * case.options["C"] * case.dtype.itemsize * (2 if backward else 1)


def tolerance(case: Case, provider: str) -> tuple[float, float]:
    """Kdx is held to its budget, the usual formula to what it keeps; another loss is no approximation of this one."""
    rounding = 0.0 if case.dtype == torch.float32 else 4e-3  # of a gradient in bfloat16
    if provider in OTHER_LOSSES:
        return float("inf"), float("inf")
    return (1e-5, 2e-6 + rounding) if provider.startswith("kdx") else (1e-4, 1e-4 + rounding)


BENCH = OpBench(
    op="topk_kl",
    cases=cases,
    make=make,
    truth=truth,
    providers=providers,
    least_bytes=least_bytes,
    tolerance=tolerance,
)
