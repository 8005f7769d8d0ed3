"""Students with n:m sparsity: of every m neighbouring weights at most n are not 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from pydantic import Field
from torch import nn
from typing_extensions import override

from kdx.errors import StudentError
from kdx.students import Derivation, Edit, Kept, Origin, Plan
from kdx_prune.channels import Unfit
from kdx_prune.gates import evaluating, run
from kdx_prune.masked import MASKED, mask_layer

__all__ = ["BySparsity", "Sparse"]


class Sparse(Edit):
    """Keeps the ``n`` largest weights of every ``m`` neighbours along the input channels; the others are and stay 0.

    Layers become :class:`kdx_prune.masked.MaskedLinear` and the like, under their old names, with a buffer ``mask``.
    2:4 is what sparse tensor cores compute with (Mishra et al. 2021, https://arxiv.org/abs/2104.08378).

    Args:
        n: weights kept of each group.
        m: size of a group.
        layers: names of the layers.
    """

    how: Literal["semi-structured"] = "semi-structured"
    n: int = Field(ge=1)
    m: int = Field(ge=2)
    layers: list[str]

    def build(self, model: nn.Module) -> None:
        """See :meth:`kdx.students.Edit.build`; the mask is that of the weights drawn, until others are loaded."""
        self._mask(model)

    def derive(self, model: nn.Module, inputs: Any) -> dict[str, Origin]:
        """See :meth:`kdx.students.Edit.derive`."""
        return self._mask(model)

    def _mask(self, model: nn.Module) -> dict[str, Origin]:
        origins = {}
        for name in self.layers:
            layer, lost = mask_layer(model, name, self.n, self.m)
            shape = tuple(layer.weight.shape)
            origins[f"{name}.weight"] = Origin("masked", shape, shape, lost)
            origins[f"{name}.mask"] = Origin("measured", shape, shape)
        return origins


class BySparsity(Derivation):
    """n:m sparsity, 2:4 by default, in all linear layers and convolutions it fits, see :class:`Sparse`.

    The number of parameters and operations stays what it is, as a dense runtime counts them; the summary's sparsity
    says how many weights are 0. Without a budget all layers are sparse; no budget can be asked for.

    Args:
        n: weights kept of each group of ``m``.
        m: neighbours in a group.
        unfit: what to do about layers that it does not fit: ``skip`` keeps them (``kept`` says which and why),
            ``refuse`` is an error that names them.

    Raises:
        ValueError: an option out of range.

    Paper: Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, https://arxiv.org/abs/2104.08378.

    Example:
        >>> import torch, kdx
        >>> student = kdx.students.derive(kdx.testing.toy_teacher(), torch.zeros(2, 1, 8, 8), how=BySparsity())
        >>> student.model.hidden.weight[0, :4].count_nonzero().item()
        2
    """

    edit = Sparse
    needs_budget = False

    def __init__(self, *, n: int = 2, m: int = 4, unfit: Unfit = "skip") -> None:
        if not 1 <= n < m:
            raise ValueError(f"n must be at least 1 and less than m; got n={n}, m={m}")
        if unfit not in get_args(Unfit):
            raise ValueError(f"unfit must be one of {', '.join(get_args(Unfit))}; got {unfit!r}")
        self.n = n
        self.m = m
        self.unfit: Unfit = unfit

    @override
    def plan(self, model: nn.Module, inputs: Any) -> Plan:
        """See :meth:`kdx.students.Derivation.plan`; layers become dense from the last one on."""
        layers, kept = _layers(model, inputs, self.m)
        if self.unfit == "refuse" and kept:
            named = "; ".join(f"{one.module}: {one.reason}" for one in kept)
            raise StudentError(f"these cannot be sparse ({named}); unfit: skip keeps them as they are")
        return Plan(
            len(layers) + 1, lambda place: Sparse(n=self.n, m=self.m, layers=layers[: len(layers) - place]), kept
        )


def _layers(model: nn.Module, inputs: Any, m: int) -> tuple[list[str], list[Kept]]:
    """The layers that can be sparse, and those with weights of two dimensions or more that cannot."""
    called = _called(model, inputs)
    count: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        count[id(parameter)] = count.get(id(parameter), 0) + 1
    layers: list[str] = []
    kept: list[Kept] = []
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or weight.dim() < 2:
            continue
        if type(module) not in MASKED:
            reason = "it is no linear layer or convolution of PyTorch"
        elif name not in called:
            reason = "its weight is read without calling it, or it did not run"
        elif count[id(weight)] > 1:
            reason = "its weight is shared with another module"
        elif getattr(module, "padding_mode", "zeros") != "zeros":
            reason = f"it pads with more than zeros ({module.padding_mode})"
        elif weight.shape[1] % m:
            reason = f"its {weight.shape[1]} input channels of a filter are no multiple of {m}"
        else:
            layers.append(name)
            continue
        kept.append(Kept(f"{name} ({type(module).__name__})", reason))
    return layers, kept


def _called(model: nn.Module, inputs: Any) -> set[str]:
    """The modules that run, in evaluation mode."""
    called: set[str] = set()

    def note(name: str) -> Callable[..., None]:
        return lambda *_: called.add(name)

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    try:
        with evaluating(model):
            run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return called
