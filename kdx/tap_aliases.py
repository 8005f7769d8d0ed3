"""Names under which taps find modules that were fused, exported or renamed since the names were written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import fx, nn

from kdx.errors import CaptureError, nearest

__all__ = ["alias_taps", "aliases_of", "tap_exported"]

_ATTRIBUTE = "kdx_tap_aliases"
_KEPT = "_user_preserved_attributes"
"""Key in the ``meta`` of a graph module for attributes that its copies keep."""
_POINTS = "tap_points"


def alias_taps(model: nn.Module, aliases: Mapping[str, str]) -> None:
    """Lets taps that name a module of the model that this one was made from find the module in its place.

    An edit that fuses or renames modules calls it on its student. Aliases of earlier edits follow: with ``a -> b``
    there and ``b -> c`` given, ``a`` is ``c``.

    Args:
        model: the student; the names are in its attribute ``kdx_tap_aliases``.
        aliases: name of a module of old -> name of the module that gives the same tensor now, as
            ``{"stage2.relu1": "stage2.norm1"}``. An alias goes before a module of the old name.

    Raises:
        CaptureError: a new name is no module of the model; the nearest are listed.

    Example:
        >>> import torch, kdx
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Identity())
        >>> alias_taps(model, {"relu": "0"})
        >>> kdx.Taps(model, ["relu"])(torch.zeros(1, 2))["relu"].shape
        torch.Size([1, 2])
    """
    modules = dict(model.named_modules())
    for old, new in aliases.items():
        if new not in modules:
            raise CaptureError(
                f"tap {old!r} cannot stand for {new!r}, which is no module of {type(model).__name__}; "
                f"{nearest(new, filter(None, modules))}"
            )
    found = {old: aliases.get(new, new) for old, new in aliases_of(model).items()} | dict(aliases)
    setattr(model, _ATTRIBUTE, found)
    if isinstance(model, fx.GraphModule):
        model.meta.setdefault(_KEPT, {})[_ATTRIBUTE] = found


def aliases_of(model: nn.Module) -> dict[str, str]:
    """The aliases of a model, old name -> new one; of models within it with the path to them."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        if aliases := vars(module).get(_ATTRIBUTE):
            before = f"{path}." if path else ""
            found |= {before + old: before + new for old, new in aliases.items()}
    return found


def tap_exported(graph: fx.GraphModule, names: Iterable[str]) -> None:
    """Lets an exported graph be tapped at modules of the model that it was exported from.

    Where the last operation of such a module is, the graph calls an identity from now on, which the tap's hook finds.
    For a graph that is quantised this comes after ``prepare_pt2e`` or ``prepare_qat_pt2e``, which fuse operations that
    follow each other.

    Args:
        graph: of ``torch.export.export(...).module()``; it is changed.
        names: of modules, as ``"stage2.relu1"``, whose output is that of their last operation.

    Raises:
        CaptureError: no operation of the graph says that it comes from a module of this name; the nearest are listed.
    """
    last: dict[str, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.op == "call_function":
            for path, _ in (node.meta.get("nn_module_stack") or {}).values():
                last[path] = node
    for name in names:
        if name not in last:
            raise CaptureError(
                f"tap {name!r}: no operation of the graph comes from a module of this name; "
                f"{nearest(name, filter(None, last))}"
            )
    aliases = {}
    for name in names:
        place = f"{_POINTS}.{name.replace('.', '_')}"
        graph.add_submodule(place, nn.Identity())
        users = list(last[name].users)
        with graph.graph.inserting_after(last[name]):
            point = graph.graph.call_module(place, (last[name],))
        for user in users:
            user.replace_input_with(last[name], point)
        aliases[name] = place
    graph.recompile()
    alias_taps(graph, aliases)
