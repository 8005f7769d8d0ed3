"""Whether a backward pass from a loss would reach one of some parameters, read from its graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

__all__ = ["reaches", "unreached"]


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
    return any(leaf is None or id(leaf) in wanted for leaf in _leaves(loss))


def unreached(loss: Tensor, parameters: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of the parameters that the graph of a loss does not lead to; none where it enters such a checkpoint.

    Args:
        loss: a scalar.
        parameters: name and leaf that asks for a gradient.

    Example:
        >>> import torch
        >>> used, head = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> both = torch.nn.ModuleDict({"used": used, "head": head})
        >>> unreached(used(torch.ones(1, 2)).sum(), both.named_parameters())
        ['head.weight', 'head.bias']
    """
    leaves = list(_leaves(loss))
    found = {id(leaf) for leaf in leaves}
    return [] if any(leaf is None for leaf in leaves) else [name for name, each in parameters if id(each) not in found]


def _leaves(loss: Tensor) -> Iterator[Tensor | None]:
    """The leaves of a graph; None for a segment whose leaves only the backward pass would show."""
    if loss.grad_fn is None:
        yield loss
    nodes: list[Any] = [loss.grad_fn]
    seen = set[Any]()
    while nodes:  # not recursive, as a graph is as deep as the model
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            yield leaf
        if "Checkpoint" in node.name():
            yield None
        nodes.extend(following for following, _ in node.next_functions)
