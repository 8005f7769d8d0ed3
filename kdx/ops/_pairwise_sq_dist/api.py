"""pairwise_sq_dist: what a user calls, the torch.library op and its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdx.ops import _dispatch
from kdx.ops._dtypes import accumulator
from kdx.ops._library import define

__all__ = ["pairwise_sq_dist"]


def _op(x: Tensor, y: Tensor, backend: str) -> Tensor:
    _, module = _dispatch.select("pairwise_sq_dist", backend, x, y)
    result: Tensor = module.forward(x, y)
    return result


define(
    "pairwise_sq_dist(Tensor x, Tensor y, str backend) -> Tensor",
    _op,
    lambda x, y, backend: x.new_empty((x.shape[0], y.shape[0]), dtype=accumulator(x, y)),
)


class _SqDist(torch.autograd.Function):
    """The distances; their gradient is made of differentiable operations, so it can be differentiated again."""

    @staticmethod
    def forward(x: Tensor, y: Tensor, backend: str) -> Tensor:
        result: Tensor = torch.ops.kdx.pairwise_sq_dist(x, y, backend)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, y, _ = inputs
        ctx.save_for_backward(x, y)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        x, y = ctx.saved_tensors
        with torch.autocast(upstream.device.type, enabled=False):
            # All points may move together: with the mean of y as the origin a common offset costs no digits.
            origin = y.detach().to(upstream.dtype).mean(0, keepdim=True) if y.shape[0] else 0
            x_c, y_c = x.to(upstream.dtype) - origin, y.to(upstream.dtype) - origin
            for_x = for_y = None
            if ctx.needs_input_grad[0]:
                for_x = (2 * (upstream.sum(1, keepdim=True) * x_c - upstream @ y_c)).to(x.dtype)
            if ctx.needs_input_grad[1]:
                for_y = (2 * (upstream.sum(0).unsqueeze(1) * y_c - upstream.T @ x_c)).to(y.dtype)
        return for_x, for_y, None


def pairwise_sq_dist(x: Tensor, y: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Squared Euclidean distances ``S[i, j] = |x_i - y_j|^2``, by direct differences.

    Other than ``|x|^2 + |y|^2 - 2 x y`` this keeps its digits for points that are close together or far from the
    origin, and is never negative. Differentiable twice in both inputs; halves are computed in float32.

    Args:
        x: points ``[N, D]``, any strides, float32, float64, bfloat16 or float16.
        y: points ``[M, D]``; by default x, and the diagonal is then exactly 0.
        backend: ``"auto"``, or the name of one that has to run it.

    Returns:
        ``[N, M]`` in float32 (float64 if an input is).

    Raises:
        ValueError: shapes or devices that do not fit; the message names the argument.
        TypeError: an input that is not floating point.
        BackendError: the named backend cannot run here.

    Example:
        >>> import torch, kdx
        >>> kdx.ops.pairwise_sq_dist(torch.tensor([[0.0, 0.0], [3.0, 4.0]])).tolist()
        [[0.0, 25.0], [25.0, 0.0]]

    """
    y = x if y is None else y
    for name, points in (("x", x), ("y", y)):
        if not isinstance(points, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(points).__name__}")
        if not points.is_floating_point():
            raise TypeError(f"{name}: expected floating point coordinates, got {points.dtype}")
        if points.dim() != 2:
            raise ValueError(f"{name}: expected points [N, D], got shape {list(points.shape)}")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"y: expected points with x's {x.shape[1]} coordinates, got {y.shape[1]}")
    if x.device != y.device:
        raise ValueError(f"y: expected it on {x.device} as x is, got {y.device}")
    if y is x:
        y = x.view_as(x)  # dynamo does not trace an autograd function that is given one tensor twice
    apply: Any = _SqDist.apply
    result: Tensor = apply(x, y, backend)
    return result
