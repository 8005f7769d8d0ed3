"""The teacher's answer as a few classes of each row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from kdx.ops._dtypes import accumulator

__all__ = ["SparseTargets", "listed_twice", "refuse_twice"]


@dataclass(frozen=True, slots=True, eq=False)
class SparseTargets:
    """The teacher's distribution of each row, known for a few classes: the K most probable, or K drawn from it.

    Args:
        ids: int64 classes ``[..., K]``; of ``"topk"`` no class twice in a row, of ``"sampled"`` as they were drawn.
        logprobs: their log-probabilities ``[..., K]``, of the softmax over all classes at ``temperature``.
        tail: log-probability ``[...]`` of all other classes together; None: what the K leave of 1.
        valid: bool ``[..., K]``, False where a row has fewer than K; None: all are.
        temperature: that the log-probabilities were taken at. Those of another one cannot be had from K classes.
        kind: ``"topk"`` or ``"sampled"``.

    Raises:
        ValueError: shapes that do not fit, log-probabilities above 0 or whose sum is above 1.
        TypeError: tensors of another type.

    Example:
        >>> import torch
        >>> logprobs = torch.tensor([[0.5, 0.25]]).log()
        >>> targets = SparseTargets(torch.tensor([[7, 3]]), logprobs)
        >>> targets.rest().exp()
        tensor([0.2500])
    """

    ids: Tensor
    logprobs: Tensor
    tail: Tensor | None = None
    valid: Tensor | None = None
    temperature: float = 1.0
    kind: Literal["topk", "sampled"] = "topk"

    def __post_init__(self) -> None:
        shape = tuple(self.ids.shape)
        if self.ids.dtype != torch.int64:
            raise TypeError(f"ids: expected int64 classes, got {self.ids.dtype}")
        if not self.logprobs.is_floating_point():
            raise TypeError(f"logprobs: expected floating-point numbers, got {self.logprobs.dtype}")
        if len(shape) < 1 or shape[-1] == 0:
            raise ValueError(f"ids: expected [..., K] with K of 1 or more, got {list(shape)}")
        if tuple(self.logprobs.shape) != shape:
            raise ValueError(f"logprobs: expected the shape of ids, {list(shape)}, got {list(self.logprobs.shape)}")
        if self.tail is not None and tuple(self.tail.shape) != shape[:-1]:
            raise ValueError(f"tail: expected one per row, {list(shape[:-1])}, got {list(self.tail.shape)}")
        if self.valid is not None and self.valid.dtype != torch.bool:
            raise TypeError(f"valid: expected bool, got {self.valid.dtype}")
        if self.valid is not None and tuple(self.valid.shape) != shape:
            raise ValueError(f"valid: expected the shape of ids, {list(shape)}, got {list(self.valid.shape)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature: expected a number above 0, got {self.temperature}")
        if self.kind not in ("topk", "sampled"):
            raise ValueError(f"kind: expected 'topk' or 'sampled', got {self.kind!r}")
        if self.kind == "sampled" and self.tail is not None:
            raise ValueError("tail: belongs to kind='topk'; samples stand for the whole distribution")
        if self.logprobs.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_values()

    def _check_values(self) -> None:
        known = self._known()
        total = known.exp().sum(-1)
        if self.tail is not None:
            total = total + self.tail.to(known.dtype).exp()
        if known.numel() and bool((known > 1e-4).any()):
            raise ValueError(
                "logprobs: expected log-probabilities, which are 0 at most; take log_softmax of the logits"
            )
        room = 1e-2 if self.logprobs.dtype in (torch.bfloat16, torch.float16) else 1e-3
        if self.kind == "topk" and total.numel() and bool((total > 1 + room).any()):
            raise ValueError(
                f"logprobs: the probabilities of a row add up to {total.max().item():.3f}, more than 1; take those of "
                "the softmax over all classes, each class once"
            )

    def _known(self) -> Tensor:
        """Log-probabilities in the accumulation dtype, -inf where a row has none."""
        known = self.logprobs.detach().to(accumulator(self.logprobs))
        return known if self.valid is None else torch.where(self.valid, known, -torch.inf)

    def rest(self) -> Tensor:
        """Log-probability ``[...]`` of all classes that are not listed, together."""
        if self.tail is not None:
            return self.tail.detach().to(accumulator(self.logprobs))
        known = self._known()
        # what is left is known no better than to rounding: no class of the others is impossible
        return torch.log1p(-known.exp().sum(-1).clamp(max=1.0 - torch.finfo(known.dtype).eps / 2))

    def flat(self) -> tuple[Tensor, Tensor]:
        """Classes ``[N, K]``, -1 where a row has none, and log-probabilities ``[N, K + 1]`` with the rest's last."""
        ids = self.ids if self.valid is None else torch.where(self.valid, self.ids, -1)
        known = torch.cat([self._known(), self.rest().unsqueeze(-1)], -1)
        return ids.reshape(-1, ids.shape[-1]), known.reshape(-1, known.shape[-1])

    def to(self, device: torch.device | str) -> SparseTargets:
        """The same on a device."""
        tail, valid = (None if x is None else x.to(device) for x in (self.tail, self.valid))
        return replace(self, ids=self.ids.to(device), logprobs=self.logprobs.to(device), tail=tail, valid=valid)


def listed_twice() -> ValueError:
    """The refusal of targets that list a class more than once in a row."""
    return ValueError("targets.ids: a row lists a class twice; kind='sampled' is for classes drawn with repetition")


def refuse_twice(ids: Tensor, *, sampled: bool) -> None:
    """Refuse rows ``[N, K]`` that list a class twice, on a CPU; the compiled kernels there see it by themselves.

    Args:
        ids: -1 where a row has no class.
        sampled: whether they were drawn, with repetition.

    Raises:
        ValueError: a row does.
    """
    if sampled or ids.device.type != "cpu":
        return
    order = ids.sort(1).values
    if bool(((order[:, 1:] == order[:, :-1]) & (order[:, 1:] >= 0)).any()):
        raise listed_twice()
