"""Components written on a command line, as ``convnet:width=8,stages=2``."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdx.errors import RecipeError
from kdx.options import check_options
from kdx.ref import Ref
from kdx.registry import Kind, default_plugins
from kdx.trust import Rule
from kdx.weights_file import WeightsFile

__all__ = ["parse_component", "parse_weights"]


def parse_component(kind: Kind, text: str, rule: Rule | None = None) -> Ref:
    """A component with its checked options.

    Args:
        kind: of the component.
        text: as it was written.
        rule: what it may name beside components; None allows nothing more.

    Raises:
        TrustError: it names code that is not trusted.
        UnknownNameError: no such component.
        RecipeError: a part is not ``key=value``, or an unknown option, or a value of the wrong type.

    Example:
        >>> parse_component("model", "convnet:width=8,stages=2")
        Ref('convnet', width=8, stages=2)
    """
    name, _, rest = text.partition(":")
    if wrong := [part for part in rest.split(",") if rest and "=" not in part]:
        raise RecipeError(f"a {kind} must be written NAME:key=value,key=value; got {wrong[0]!r} in {text!r}")
    try:
        options: Any = OmegaConf.to_container(OmegaConf.from_dotlist(rest.split(","))) if rest else {}
    except (OmegaConfBaseException, ValueError) as error:
        raise RecipeError(f"a {kind} must be written NAME:key=value,key=value; got {text!r} ({error})") from error
    from kdx.students.config import check_targets  # imports torch

    check_targets({"name": name, **options}, f"{kind} {name}", rule or Rule.of())
    return Ref(name, **check_options(f"{kind} {name}", default_plugins().load(kind, name), options))


def parse_weights(text: str) -> WeightsFile:
    """A file of weights: its path, or a mapping as a recipe has it.

    Raises:
        CheckpointError: the mapping has no ``file``, or a key that there is not.
        RecipeError: it is no mapping.

    Example:
        >>> parse_weights("{file: w.pt, prefix: module.}").prefix
        'module.'
    """
    if not text.startswith("{"):
        return WeightsFile.of(text)
    try:
        found: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
        return WeightsFile.of(found["value"])
    except (OmegaConfBaseException, ValueError) as error:
        raise RecipeError(f"weights must be a path, or {{file: PATH, prefix: ...}}; got {text!r} ({error})") from error
