"""linear_kl: KL(teacher || student) from the hidden states of two language models and their heads, batch mean.

The sizes of language models, with memory, are measured by ``python -m bench heads``.
"""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.registry import Case, Inputs, OpBench, Provider, backend
from kdx.ops import linear_kl, softmax_kl

CPU_SHAPES = [(64, 128, 8000), (256, 256, 32000)]
GPU_SHAPES = [(8192, 4096, 32000), (8192, 4096, 128256)]
TRUTH_LOGITS = 1 << 25  # worked on at once for the float64 truth


def cases(device: str) -> list[Case]:
    if device == "cpu":
        return [_case(*shape, data=data) for shape in CPU_SHAPES for data in ("spread", "near")]
    return [_case(*shape, dtype=torch.bfloat16) for shape in GPU_SHAPES]


def _case(N: int, H: int, V: int, *, dtype: torch.dtype = torch.float32, data: str = "spread") -> Case:
    return Case(f"{N}x{H}x{V}", dtype, data, {"N": N, "H": H, "V": V})


def case_of(shape: str, dtype: torch.dtype) -> Case:
    """The case of a shape such as 1024x512x32000: rows, width of the hidden states, classes."""
    N, H, V = (int(number) for number in shape.split("x"))
    return _case(N, H, V, dtype=dtype)


def make(case: Case, device: torch.device) -> Inputs:
    """Hidden states and head of the student, then of the teacher; logits of spread 3."""
    generator = torch.Generator(device).manual_seed(0)
    N, H, V = (case.options[name] for name in "NHV")

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    student, weight = drawn(N, H), 3 / H**0.5 * drawn(V, H)
    gap = 0.3 if case.data == "spread" else 3e-3
    teacher, teacher_weight = student + gap * drawn(N, H), weight.clone()
    inputs = (student, weight, teacher, teacher_weight)
    s, w, t, w_t = (x.to(case.dtype) for x in inputs)
    return s.requires_grad_(), w.requires_grad_(), t, w_t


def eager(student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor) -> Tensor:
    log_q = F.log_softmax((student @ weight.T).float(), -1)
    log_p = F.log_softmax((teacher @ teacher_weight.T).float(), -1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def dense(student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor) -> Tensor:
    return softmax_kl(student @ weight.T, teacher @ teacher_weight.T)


def ours(student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, backend: str) -> Tensor:
    return linear_kl(student, weight, teacher, teacher_weight, backend=backend)


def liger(student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor) -> Tensor:
    """Liger's chunked loss, in PyTorch's operations; beta 0 is KL(teacher || student)."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False)
    labels = torch.zeros(student.shape[0], dtype=torch.int64, device=student.device)
    found: Tensor = loss(student, weight, teacher, teacher_weight, labels)
    return found


def trl(student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor) -> Tensor:
    """The loss of TRL's distillation trainer, in chunks of rows and classes; beta 0 is KL(teacher || student)."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    rows: Tensor = ChunkedDivergenceFunction.apply(student, weight, None, teacher, teacher_weight, None, 0.0)[0]
    return rows.mean()


def truth(student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor) -> tuple[Tensor, Tensor]:
    """By the reference, some rows at a time."""
    N, V = student.shape[0], weight.shape[0]
    rows = max(1, TRUTH_LOGITS // V)
    head, head_t = weight.detach().double(), teacher_weight.double()
    loss = torch.zeros((), dtype=torch.float64, device=student.device)
    grad = torch.empty(student.shape, dtype=torch.float64, device=student.device)
    for start in range(0, N, rows):
        part = slice(start, start + rows)
        x = student[part].detach().double().requires_grad_()
        value = linear_kl(x, head, teacher[part].double(), head_t, reduction="sum", backend="reference")
        loss += value.detach()
        grad[part] = torch.autograd.grad(value, x)[0]
    return loss / N, grad.div_(N)


def providers(device: str) -> list[Provider]:
    peers = [Provider("eager", eager), Provider("torch.compile", torch.compile(eager, dynamic=False))]
    names = ("triton", "cuda") if device == "cuda" else ("cpu",)
    for package, name, function in (("liger_kernel", "liger", liger), ("trl", "trl", trl)):
        if importlib.util.find_spec(package):
            peers.append(Provider(name, function))
    return [*peers, Provider("softmax_kl", dense), *(backend("linear_kl", name, ours) for name in names)]


def least_bytes(case: Case, backward: bool) -> int:
    """Hidden states and heads read once and their gradients written once; but the work is arithmetic."""
    N, H, V = (case.options[name] for name in "NHV")
    return (N + V) * H * case.dtype.itemsize * (3 if backward else 2)


def tolerance(case: Case, provider: str) -> tuple[float, float]:
    """The logits of float32 operands are rounded to float32: near agreement that is a share of what they differ by.

    Peers lose more there; their errors stand in the row.
    """
    near, narrow = case.data == "near", case.dtype != torch.float32
    if provider.startswith("kdx"):
        return (1e-3, 1e-3) if near else (1e-5, 3e-3 if narrow else 2e-5)
    return (10.0, 1.0) if near or narrow else (1e-4, 1e-3)


BENCH = OpBench(
    op="linear_kl",
    cases=cases,
    make=make,
    truth=truth,
    providers=providers,
    least_bytes=least_bytes,
    tolerance=tolerance,
)
