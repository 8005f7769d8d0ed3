"""Augmentation whose draw depends on seed, epoch and sample alone, not on the order of batches."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ShiftFlip", "uniform"]

_MASK64 = (1 << 64) - 1


class ShiftFlip:
    """Random shift and mirror image for small images; a pure function of ``(seed, epoch, index)``.

    The same sample in the same epoch always gets the same view: in another batch, in another process, after resuming,
    and for teacher and student alike. No random state is read or changed. The numbers are the key hashed by the
    finaliser of SplitMix64 (Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195).

    Args:
        shift: largest shift in pixels along each axis; the shift is uniform over ``-shift .. shift``.
        flip: probability of mirroring left and right.
        fill: value of the pixels that move in; None takes the smallest value of each image, its background.
        seed: another seed gives other views.

    Raises:
        ValueError: ``shift`` is negative or ``flip`` is outside 0..1.

    Example:
        >>> import torch
        >>> augment = ShiftFlip(shift=2)
        >>> images, index = torch.rand(8, 1, 28, 28), torch.arange(8)
        >>> views = augment(images, index, epoch=3)
        >>> bool((augment(images[5:], index[5:], epoch=3) == views[5:]).all())
        True

    """

    def __init__(self, shift: int = 2, flip: float = 0.5, *, fill: float | None = None, seed: int = 0) -> None:
        if shift < 0:
            raise ValueError(f"shift must be a number of pixels, 0 or more; got {shift}")
        if not 0.0 <= flip <= 1.0:
            raise ValueError(f"flip must be a probability between 0 and 1; got {flip}")
        self.shift = shift
        self.flip = flip
        self.fill = fill
        self.seed = seed

    def __call__(self, images: Tensor, index: Tensor, epoch: int = 0) -> Tensor:
        """The views of one batch.

        Args:
            images: ``[B, C, H, W]``, any floating dtype and device.
            index: row of each image in its data set, int64, ``[B]``.
            epoch: another epoch gives other views.

        Returns:
            New images, ``[B, C, H, W]``.

        Raises:
            ValueError: the shapes do not fit.

        """
        if images.dim() != 4 or index.shape != images.shape[:1]:
            raise ValueError(
                f"images must be [B, C, H, W] and index [B]; got {list(images.shape)} and {list(index.shape)}"
            )
        B, _, H, W = images.shape
        device = images.device
        draws = uniform(self.seed, epoch, index.to(device), count=3)  # [B, 3]
        down, right = ((draws[:, :2] * (2 * self.shift + 1)).long() - self.shift).unbind(1)  # [B]
        rows = torch.arange(H, device=device) - down[:, None]  # [B, H], the source row of each row of the view
        columns = torch.arange(W, device=device) - right[:, None]  # [B, W]
        columns = torch.where(draws[:, 2:] < self.flip, columns.flip(1), columns)
        known = ((rows >= 0) & (rows < H))[:, :, None] & ((columns >= 0) & (columns < W))[:, None, :]  # [B, H, W]
        sample = torch.arange(B, device=device)[:, None, None]
        moved = images[sample, :, rows.clamp(0, H - 1)[:, :, None], columns.clamp(0, W - 1)[:, None, :]]  # [B, H, W, C]
        fill = images.amin(dim=(1, 2, 3), keepdim=True) if self.fill is None else images.new_tensor(self.fill)
        return torch.where(known[:, None], moved.permute(0, 3, 1, 2), fill)


def uniform(seed: int, epoch: int, index: Tensor, count: int) -> Tensor:
    """``count`` numbers in [0, 1) for each index, float64, ``[B, count]``; a hash of all arguments."""
    key = torch.full_like(index, _signed(seed))
    for part in (torch.full_like(index, _signed(epoch)), index):
        key = _mix(key) ^ part
    streams = torch.arange(1, count + 1, device=index.device) * _signed(0x9E3779B97F4A7C15)
    bits = _mix(_mix(key)[:, None] + streams)  # [B, count]
    return ((bits >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    """The SplitMix64 finaliser; int64 arithmetic wraps as its unsigned original does."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own keeps the sign."""
    return (x >> bits) & (_MASK64 >> bits)


def _signed(value: int) -> int:
    """The int64 with the low 64 bits of ``value``."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value
