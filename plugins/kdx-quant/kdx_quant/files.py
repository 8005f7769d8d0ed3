"""Quantised students as files that need no kdx: ONNX, and programs of torch.export."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdx.errors import StudentError
from kdx_quant.layers import unrounded
from kdx_quant.stored import converted

__all__ = ["KINDS", "Kind", "Runnable", "check_installed", "read_onnx", "write", "write_onnx", "write_torch_export"]

Runnable = Callable[[Tensor], Tensor]
Kind = Literal["onnx", "onnx-int4", "onnx-float", "torch-export"]
KINDS: dict[Kind, str] = {
    "onnx": "student.onnx",
    "onnx-int4": "student-int4.onnx",
    "onnx-float": "student-float.onnx",
    "torch-export": "student.pt2",
}
"""Kinds of files, and how they are named: weights as int8; those of four bits and less as int4; the same student
without rounding, to compare size and latency with; a program of ``torch.export``.
"""


def check_installed(kinds: Iterable[Kind]) -> None:
    """Looks for the packages that kinds of files need.

    Raises:
        StudentError: one is not installed; it says which.
    """
    needed = ("onnx", "onnxruntime", "onnxscript") if any(kind.startswith("onnx") for kind in kinds) else ()
    if missing := [name for name in needed if find_spec(name) is None]:
        raise StudentError(
            f"files: onnx needs {', '.join(missing)}: pip install {' '.join(missing)}; or write files: [] in how"
        )


def write(kind: Kind, student: nn.Module, example: Tensor, folder: Path) -> tuple[Path, Runnable]:
    """Writes a student as one of :data:`KINDS`; the file and what runs it."""
    path = folder / KINDS[kind]
    if kind == "torch-export":
        return path, write_torch_export(student, example, path)
    if kind == "onnx-float":
        return path, write_onnx(unrounded(student), example, path)
    return path, write_onnx(student, example, path, pack=kind == "onnx-int4")


def write_onnx(student: nn.Module, example: Tensor, path: str | Path, *, pack: bool = False) -> Runnable:
    """Writes a student as ONNX, its rounding as pairs of ``QuantizeLinear`` and ``DequantizeLinear``.

    BatchNorms are folded into the steps of the convolutions before them, and ReLUs before a rounding are left out, so
    that onnxruntime runs convolutions with integers. Weights are stored as int8 levels, a byte each.

    Args:
        student: quantised and trained, see :class:`kdx_quant.quantise.Quantise`; it is not changed. One in full
            precision is written as it is.
        example: ``[N, ...]``, what it takes; the number of rows stays free.
        path: of the file.
        pack: store weights of four bits and less as int4, two in a byte. onnxruntime 1.32 has no integer kernel for
            convolutions of such weights and computes them in float32.

    Returns:
        What :func:`read_onnx` gives for the file.

    Raises:
        StudentError: it has seen no batch in training.
    """
    import onnx

    from kdx_quant.onnx_graph import fold_norms, leave_out_notes, leave_out_relus, pack_four_bits

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own exporter about itself
        program: Any = torch.onnx.export(
            converted(student),
            (_two_rows(example),),
            input_names=["inputs"],
            output_names=["outputs"],
            dynamic_shapes=({0: torch.export.Dim("rows", min=1)},),
            dynamo=True,
            opset_version=21,  # the first with int4
            verbose=False,
        )
    model = program.model_proto
    for improve in (leave_out_notes, fold_norms, leave_out_relus, *([pack_four_bits] if pack else [])):
        improve(model)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return read_onnx(path)


def read_onnx(path: str | Path, *, threads: int = 1) -> Runnable:
    """A file run by onnxruntime: a function from inputs ``[N, ...]`` to outputs, both float32 on the CPU.

    Args:
        path: of the file.
        threads: that it uses.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"inputs": inputs.detach().cpu().numpy()})[0])

    return run


def write_torch_export(student: nn.Module, example: Tensor, path: str | Path) -> Runnable:
    """Writes a student as a program of ``torch.export`` with PT2E's operators, and integer weights alone.

    Args:
        student: see :func:`write_onnx`.
        example: see :func:`write_onnx`.
        path: of the file, ``.pt2``. To load it, ``import torchao.quantization.pt2e``, which knows the operators.

    Returns:
        The loaded program, run in eager mode; inductor compiles its rounded layers to integer kernels.

    Raises:
        StudentError: see :func:`write_onnx`.
    """
    rows = torch.export.Dim("rows", min=1)
    inputs = (_two_rows(example),)
    with torch.no_grad():
        program = torch.export.export(converted(student), inputs, dynamic_shapes=({0: rows},), strict=False)
    torch.export.save(program, str(path))
    loaded = torch.export.load(str(path)).module()

    def run(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = loaded(inputs)
        return result

    return run


def _two_rows(example: Tensor) -> Tensor:
    return example.repeat(2, *[1] * (example.dim() - 1))[:2].contiguous()
