"""Modules of a student that stay in evaluation mode while it is trained: those that the user put into it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from kdx.modes import mode_of, put_into, switches, train
from kdx.schemes.base import Scheme

__all__ = ["put_into_training", "resting_modules"]


def resting_modules(scheme: Scheme, keep_eval: bool | None) -> list[nn.Module]:
    """The modules of a scheme's students that are in evaluation mode now and stay in it during training.

    In a student in training mode these are the layers (modules without modules in them) in evaluation mode, and larger
    parts in it of which no parameter is trained. A student handed over wholly in evaluation mode is trained in training
    mode, but for normalisations with running statistics whose own weights are frozen.

    Args:
        scheme: before it is put into training mode.
        keep_eval: True: every module in evaluation mode stays in it; False: none does; None: as above.

    Raises:
        ValueError: ``keep_eval`` is None and a larger part of a student in training mode is in evaluation mode, though
            its parameters are trained: whether that is wanted cannot be known (a pretrained body that was loaded in
            evaluation mode looks the same as one that is meant to stay in it).
    """
    resting: list[nn.Module] = []
    for name, student in scheme.students.items():
        modules = {path: module for path, module in student.named_modules() if not switches(module)}
        at_rest = {path: module for path, module in modules.items() if not module.training}
        if keep_eval is None and not mode_of(student):
            at_rest = {path: module for path, module in at_rest.items() if _is_frozen_norm(module)}
        elif keep_eval is None and (unclear := next(_unclear(at_rest), None)) is not None:
            raise ValueError(
                f"{unclear!r} of {name!r} is in evaluation mode, and the rest of the model in training mode. Say what "
                "is wanted: keep_eval=True trains it in evaluation mode (no dropout, BatchNorm by its running "
                "statistics, which stay), keep_eval=False in training mode, as model.train() before kdx.fit does"
            )
        resting += at_rest.values() if keep_eval is not False else ()
    return resting


def put_into_training(scheme: Scheme, resting: Iterable[nn.Module]) -> None:
    """Puts a scheme into training mode, but for the modules that rest.

    Raises:
        ValueError: a student is an exported graph, which has no training mode.
    """
    try:
        train(scheme)
    except NotImplementedError as error:
        raise ValueError(
            f"{' or '.join(scheme.students)} is an exported graph, or holds one, and has no training mode; train the "
            "model that it was made from, or say with torchao.quantization.pt2e.allow_exported_model_train_eval(graph) "
            "that its dropout and BatchNorm are to be switched"
        ) from error
    for module in resting:
        put_into(module, training=False)


def _unclear(at_rest: dict[str, nn.Module]) -> Iterator[str]:
    """Paths of parts in evaluation mode that hold modules and are trained."""
    for path, module in at_rest.items():
        if any(True for _ in module.children()) and any(p.requires_grad for p in module.parameters()):
            yield path


def _is_frozen_norm(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    has_statistics = isinstance(module, _NormBase) and module.running_mean is not None
    return has_statistics and bool(own) and not any(parameter.requires_grad for parameter in own)
