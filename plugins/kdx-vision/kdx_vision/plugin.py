"""The hooks of this package; it imports no torch, and neither timm nor torchvision before they are used."""

from __future__ import annotations

from collections.abc import Iterable

from kdx import Spec, hookimpl


@hookimpl
def kdx_models() -> Iterable[Spec]:
    """Models of the two big collections."""
    return [
        Spec("timm", "kdx_vision.models:timm_model", "any model of timm (pip install timm)"),
        Spec("torchvision", "kdx_vision.models:torchvision_model", "any classifier of torchvision"),
    ]


@hookimpl
def kdx_datasets() -> Iterable[Spec]:
    """The data sets of torchvision."""
    return [
        Spec("torchvision", "kdx_vision.torchvision_set:TorchvisionSet", "a data set of torchvision from a local root"),
    ]
