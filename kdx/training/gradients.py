"""How strongly each term of a loss pulls, and in which direction."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kdx.losses import Losses, tasks_of

__all__ = ["term_gradients"]


def term_gradients(losses: Losses, parameters: Iterable[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Norm of every term's gradient and its cosine to the task loss's gradient.

    The graph is kept, so that ``losses.total.backward()`` can follow.

    Args:
        losses: of one batch, with their graph.
        parameters: the student's parameters; one that a term does not reach counts as zero.

    Returns:
        Term name -> (norm, cosine), 0-dim fp32 tensors on the device. The cosine is NaN without a task loss or when one
        of the gradients is zero. Of several heads the task losses count together. See :func:`tasks_of`.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    found = {name: _flat(term, wanted) for name, term in losses.terms.items() if term.requires_grad}
    norms = {name: gradient.norm() for name, gradient in found.items()}
    result = {}
    for name, gradient in found.items():
        tasks = [found[task] for task in tasks_of(name, found)]
        cosine = torch.full_like(norms[name], torch.nan)
        if tasks:
            task = torch.stack(tasks).sum(0)
            cosine = torch.dot(gradient, task) / (norms[name] * task.norm())
        result[name] = norms[name], cosine
    return result


def _flat(term: Tensor, parameters: list[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(parameter) if gradient is None else gradient).float().flatten()
            for gradient, parameter in zip(gradients, parameters, strict=True)
        ]
    )
