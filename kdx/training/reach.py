"""Whether a backward pass from a loss would reach one of some parameters, read from its graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

__all__ = ["reaches"]


def reaches(loss: Tensor, parameters: Iterable[Tensor]) -> bool:
    """Whether the graph of a loss leads to one of these parameters; no gradient is computed.

    A segment under a *reentrant* checkpoint (``torch.utils.checkpoint`` with ``use_reentrant=True``) builds its graph
    in the backward pass only: a loss that enters one counts as reaching the parameters in it.

    Args:
        loss: a scalar.
        parameters: leaves that ask for a gradient.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1)
        >>> output = layer(torch.ones(1, 2)).sum()
        >>> reaches(0 * output, layer.parameters()), reaches(output.detach() + 0, layer.parameters())
        (True, False)
    """
    wanted = {id(parameter) for parameter in parameters}
    if id(loss) in wanted:
        return True
    nodes: list[Any] = [loss.grad_fn]
    seen = set[Any]()
    while nodes:  # not recursive, as a graph is as deep as the model
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in wanted or "Checkpoint" in node.name():
            return True
        nodes.extend(following for following, _ in node.next_functions)
    return False
