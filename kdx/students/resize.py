"""Weights of other sizes, and the attributes of the modules that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from kdx.errors import StudentError

__all__ = ["fit_attributes", "get_tensor", "reset", "set_tensors"]


def get_tensor(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its qualified name.

    Raises:
        StudentError: there is none.
    """
    path, _, own = name.rpartition(".")
    try:
        found = getattr(model.get_submodule(path), own)
    except AttributeError:
        found = None
    if not isinstance(found, Tensor):
        raise StudentError(
            f"{type(model).__name__} has no parameter or buffer {name!r}; is it built as it was when the student was "
            "derived?"
        )
    return found


def set_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts tensors in the place of others, tied ones together, and fits their modules' attributes."""
    # all of them first: a module with two names holds the new one at the second, and ids of freed tensors come again
    before = {name: get_tensor(model, name) for name in tensors}
    made: dict[int, nn.Parameter] = {}
    touched: dict[int, nn.Module] = {}
    for name, tensor in tensors.items():
        path, _, own = name.rpartition(".")
        module, old = model.get_submodule(path), before[name]
        if isinstance(old, nn.Parameter):
            if id(old) not in made:
                made[id(old)] = nn.Parameter(tensor, requires_grad=old.requires_grad)
            setattr(module, own, made[id(old)])
        else:
            setattr(module, own, tensor)
        touched[id(module)] = module
    for module in model.modules():
        if id(module) in touched or isinstance(module, nn.MultiheadAttention):
            fit_attributes(module)


def fit_attributes(module: nn.Module) -> None:
    """Makes the sizes that a standard module holds those of its tensors. Other modules are left alone."""
    match module:
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            if module.groups > 1:  # depth-wise; other groups are never resized
                module.groups = module.weight.shape[0] * module.groups // module.out_channels
            module.out_channels = module.weight.shape[0]
            module.in_channels = module.weight.shape[1] * module.groups
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.modules.batchnorm._NormBase():
            held = next(t for t in (module.weight, module.running_mean) if t is not None)
            module.num_features = held.shape[0]
        case nn.LayerNorm() | nn.RMSNorm():
            if module.weight is not None:
                module.normalized_shape = tuple(module.weight.shape)
        case nn.GroupNorm():
            if module.weight is not None:
                module.num_channels = module.weight.shape[0]
        case nn.Embedding():
            module.num_embeddings, module.embedding_dim = module.weight.shape
        case nn.PReLU():
            module.num_parameters = module.weight.shape[0]
        case nn.MultiheadAttention():
            if module.in_proj_weight is not None:
                module.embed_dim = module.kdim = module.vdim = module.in_proj_weight.shape[1]
                module.head_dim = module.embed_dim // module.num_heads


def reset(modules: Iterable[nn.Module]) -> None:
    """Draws new weights as PyTorch does for these modules; one that has no such method keeps its own."""
    for module in modules:
        for name in ("reset_parameters", "_reset_parameters"):
            if callable(method := getattr(module, name, None)):
                method()
                break
