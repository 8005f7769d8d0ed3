"""Rounding to few levels with a gradient: of weights per output channel, of what a layer takes per tensor or row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["InputRounding", "RowRounding", "WeightRounding", "first_step", "round_to_levels"]

_SMALLEST = 1e-8
"""Least step: a channel of zeros has a range of zero."""


def round_to_levels(x: Tensor, step: Tensor, *, zero: Tensor | float, least: int, most: int) -> Tensor:
    """Rounds ``x`` to the nearest of the levels ``(least - zero) * step .. (most - zero) * step``.

    The gradient passes to ``x`` within the range and is zero outside (the straight-through estimator); the step gets
    that of LSQ: ``round(x / step) - x / step`` within, the level at the end outside.

    Args:
        x: values, any shape.
        step: distance of two levels, broadcast against ``x``, above 0.
        zero: the level that stands for 0.
        least: lowest level.
        most: highest level.

    Returns:
        Rounded values, shape and dtype of ``x``; computed in float32 at least.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    step = step.to(wide)
    level = (x.to(wide) / step + zero).clamp(least, most)
    level = level + (level.round() - level).detach()
    return ((level - zero) * step).to(x.dtype)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The same value, whose gradient is multiplied by ``factor``."""
    return x.detach() + (x - x.detach()) * factor


def first_step(mean: Tensor, largest: Tensor, most: float | Tensor) -> Tensor:
    """The step that learning begins with: that of LSQ, ``2 * mean / sqrt(most)``, or the range's if that is smaller.

    LSQ's is right for few levels. Of many it makes a range far beyond the largest value, and most levels stay unused:
    at 8 bits 32 times the mean.

    Args:
        mean: of the absolute values.
        largest: of the absolute values.
        most: highest level.
    """
    return torch.minimum(2 * mean / most**0.5, largest / most).clamp_min(_SMALLEST)


class WeightRounding(nn.Module):
    """Rounds a weight ``[O, ...]`` to ``2**bits - 1`` levels around 0, with one step for each output channel.

    The levels are symmetric (-127 to 127 for 8 bits, -1 to 1 for 2), so that a norm behind the layer can be folded
    into the steps whatever the sign of its scale.

    Args:
        weight: to be rounded, ``[O, ...]``; learned steps begin at :func:`first_step`.
        bits: of a level, 2 to 8.
        learned: whether the steps are parameters (LSQ); else a channel's step is its largest absolute weight over the
            highest level, at every pass.

    Paper: Esser et al., Learned Step Size Quantization, ICLR 2020, https://arxiv.org/abs/1902.08153.
    """

    def __init__(self, weight: Tensor, bits: int, *, learned: bool) -> None:
        super().__init__()
        self.bits, self.most, self.learned = bits, 2 ** (bits - 1) - 1, learned
        if learned:
            self.step = nn.Parameter(self._first(weight.detach()), requires_grad=weight.requires_grad)

    def steps(self, weight: Tensor) -> Tensor:
        """The step of every channel, ``[O]``."""
        if self.learned:
            factor = (weight[0].numel() * self.most) ** -0.5
            return scale_gradient(self.step, factor).abs().clamp_min(_SMALLEST)
        return (weight.detach().flatten(1).abs().amax(1) / self.most).clamp_min(_SMALLEST)

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight, ``[O, ...]``."""
        step = self.steps(weight).view(-1, *[1] * (weight.dim() - 1))
        return round_to_levels(weight, step, zero=0.0, least=-self.most, most=self.most)

    def levels(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The form in which a weight is stored: levels as int8 ``[O, ...]``, and the steps ``[O]``, float32."""
        weight, step = weight.detach(), self.steps(weight).detach()
        rounded = (weight / step.view(-1, *[1] * (weight.dim() - 1))).clamp(-self.most, self.most).round()
        return rounded.to(torch.int8), step.float()

    def extra_repr(self) -> str:
        """Shown in ``print(model)``."""
        return f"bits={self.bits}, learned={self.learned}"

    def _first(self, weight: Tensor) -> Tensor:
        size = weight.flatten(1).abs()
        return first_step(size.mean(1), size.amax(1), self.most)


class InputRounding(nn.Module):
    """Rounds what a layer takes to ``2**bits`` levels, 0 to ``2**bits - 1``, of one step for the whole tensor.

    The first batch in training says whether values are below 0: if none is, level 0 stands for 0, else the level in
    the middle. Until then the step is 0 and nothing is rounded, so that a model can be evaluated and looked at before
    it is trained. Of several processes the batches of all count.

    Args:
        bits: of a level, 2 to 8.
        learned: whether the step is a parameter (LSQ), which begins at :func:`first_step` of the first batch; else it
            follows the largest value of the batches in training, as a moving average of weight 0.1.
        device: of the step.

    Paper: see :class:`WeightRounding`.
    """

    step: Tensor
    zero: Tensor

    def __init__(self, bits: int, *, learned: bool, device: torch.device | None = None) -> None:
        super().__init__()
        self.bits, self.most, self.learned = bits, 2**bits - 1, learned
        step = torch.zeros((), device=device)
        if learned:
            self.step = nn.Parameter(step)
        else:
            self.register_buffer("step", step)
        self.register_buffer("zero", torch.zeros((), device=device))

    @property
    def is_set(self) -> bool:
        """Whether a batch has been seen in training."""
        return bool(self.step != 0)

    def forward(self, x: Tensor) -> Tensor:
        """The rounded tensor, shape and dtype of ``x``."""
        if self.training and not (self.learned and self.is_set):
            self.observe(x.detach())
        if not torch.compiler.is_exporting() and not self.is_set:
            return x
        step = self.step
        if self.learned:
            step = scale_gradient(step, (x[0].numel() * self.most) ** -0.5).abs().clamp_min(_SMALLEST)
        return round_to_levels(x, step, zero=self.zero, least=0, most=self.most)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Takes the step, and at first the level of 0, from a batch."""
        x = x.float()
        seen = torch.stack([x.abs().mean(), x.abs().amax(), (x < 0).any().float()])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(seen)
            seen[:2] /= torch.distributed.get_world_size()
        mean, largest, signed = seen
        middle = (self.most + 1) / 2
        self.zero.copy_(torch.where(signed > 0, middle, self.zero))
        above = torch.where(self.zero > 0, middle - 1, float(self.most))
        if self.learned:
            self.step.copy_(first_step(mean, largest, above))
        else:
            now = (largest / above).clamp_min(_SMALLEST)
            self.step.copy_(torch.where(self.step == 0, now, torch.lerp(self.step, now, 0.1)))

    def levels(self) -> tuple[float, int]:
        """The step and the level of 0, plain numbers."""
        return max(abs(float(self.step)), _SMALLEST), int(self.zero)

    def extra_repr(self) -> str:
        """Shown in ``print(model)``."""
        return f"bits={self.bits}, learned={self.learned}"


class RowRounding(nn.Module):
    """Rounds every row ``[..., D]`` of what a linear layer takes by its own largest value, at every pass (dynamic).

    The levels and the step are those of torchao's symmetric int8 activations, -128 to 127 and the largest value over
    127.5, so that its integer kernels give the same. It has no state.

    Args:
        bits: of a level, 2 to 8.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits, self.most = bits, 2 ** (bits - 1) - 1

    def forward(self, x: Tensor) -> Tensor:
        """The rounded tensor, shape and dtype of ``x``."""
        step = (x.detach().abs().amax(-1, keepdim=True) / (self.most + 0.5)).clamp_min(_SMALLEST)
        return round_to_levels(x, step, zero=0.0, least=-self.most - 1, most=self.most)

    def extra_repr(self) -> str:
        """Shown in ``print(model)``."""
        return f"bits={self.bits}, dynamic"
