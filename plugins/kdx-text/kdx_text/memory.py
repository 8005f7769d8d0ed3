"""Vectors of texts that a frozen encoder has seen, so that no text runs through it twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["TextMemory"]

CHUNK = 32
"""Rows that run through the encoder together; they are of about the same length, so that little padding is computed."""

_known: dict[str, dict[bytes, Tensor]] = {}
"""Hash of an encoder -> a row's ids -> its vector."""


class TextMemory:
    """The pooled vectors of the rows that an encoder has seen, for all models of this process with the same encoder.

    An encoder is known by a hash of its parameters and buffers, which is taken again when one of them has changed. A
    vector takes 4 bytes for each of its numbers, and is kept until the process ends.

    Args:
        encoder: frozen, in evaluation mode.
        padding: the id of the padding.
        pooling: what makes a vector of hidden states; vectors of one pooling are no answer for another.
    """

    def __init__(self, encoder: nn.Module, padding: int, pooling: str) -> None:
        self.encoder, self.padding, self.pooling = encoder, padding, pooling
        self._versions: list[tuple[int, int]] = []
        self._hash = ""

    def __call__(self, ids: Tensor, pool: Callable[[Tensor], Tensor]) -> Tensor:
        """The vectors ``[N, D]`` of rows ``[N, L]``, without a gradient.

        Args:
            ids: int64; padding at the end of rows.
            pool: gives the vectors of rows that are not known yet, of ``[M, l]`` ids with l up to L.

        Raises:
            RuntimeError: a parameter of the encoder asks for a gradient, which vectors of the past do not have.
        """
        if any(parameter.requires_grad for parameter in self.encoder.parameters()):
            raise RuntimeError(
                "remember: expected a frozen encoder, and some of its parameters ask for a gradient, which remembered "
                "vectors do not have; leave the encoder frozen, or build the model without remember"
            )
        known = _known.setdefault(self._key(), {})
        rows = [row.numpy().tobytes() for row in ids.cpu()]
        missing = {row: k for k, row in enumerate(rows) if row not in known}
        kept = ids != self.padding
        length = (kept * torch.arange(1, ids.shape[1] + 1, device=ids.device)).amax(1).clamp(min=1)  # [N]
        order = sorted(missing.values(), key=length.tolist().__getitem__)
        for start in range(0, len(order), CHUNK):
            chosen = order[start : start + CHUNK]
            with torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
                vectors = pool(ids[chosen, : int(length[chosen].max())])
            known.update(zip((rows[k] for k in chosen), vectors.cpu().unbind(), strict=True))
        return torch.stack([known[row] for row in rows]).to(ids.device)

    def _key(self) -> str:
        tensors = (*self.encoder.parameters(), *self.encoder.buffers())
        versions = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        if versions != self._versions:
            digest = hashlib.sha256(f"{self.padding} {self.pooling} {self.encoder.config}".encode())
            for tensor in tensors:
                digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            self._versions, self._hash = versions, digest.hexdigest()
        return self._hash
