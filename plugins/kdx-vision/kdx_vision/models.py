"""Models of timm and torchvision by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from kdx.errors import KdxError
from kdx.training import load_weights

__all__ = ["collection", "timm_model", "torchvision_model"]


def collection(name: str) -> ModuleType:
    """The module ``timm`` or ``torchvision``.

    Raises:
        ModuleNotFoundError: it is not installed; says how to get it.
        ImportError: it is, and does not import.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # a torchvision beside another torch raises RuntimeError
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise ModuleNotFoundError(
                f"this component needs {name}, which is not installed: `pip install {name}`", name=name
            ) from error
        raise ImportError(
            f"{name} is installed but does not import: {type(error).__name__}: {error}; releases of torch, torchvision "
            "and timm have to go together",
            name=name,
        ) from error


def timm_model(
    model: str,
    *,
    weights: Path | dict[str, Any] | None = None,
    drop_rate: float = 0.0,
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (3, 224, 224),
) -> nn.Module:
    """A model of timm. Its taps are its modules: ``blocks.*`` of a ViT, ``layer1`` .. ``layer4`` of a ResNet.

    Args:
        model: its name in timm, as ``"resnet18"``; ``timm.list_models()`` has about a thousand.
        weights: a local file, or a mapping as ``{file: resnet50.safetensors, skip: [fc]}``, see
            :func:`kdx.training.load_weights`; None draws the weights. Nothing is downloaded, and nothing in it is run.
        drop_rate: dropout before the classifier.
        num_classes: number of logits.
        input_shape: channels, height and width; models of a fixed image size are built for it.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: timm has no such model, or the file holds other weights.
    """
    timm = collection("timm")
    if model not in timm.list_models():
        near = timm.list_models(f"*{model}*")[:5]
        raise ValueError(f"model: timm has none named {model!r}" + (f"; it has {', '.join(near)}" if near else ""))
    options = {"num_classes": num_classes, "in_chans": input_shape[0], "drop_rate": drop_rate}
    try:
        made: nn.Module = timm.create_model(model, img_size=input_shape[1:], **options)
    except TypeError:  # a convolutional net takes any size and has no such option
        made = timm.create_model(model, **options)
    if weights is not None:  # timm's own way of loading unpickles, which runs what a file says
        try:
            load_weights(made, weights)
        except KdxError as error:
            raise ValueError(f"weights of {model}: {error}") from error
    return made


def torchvision_model(
    model: str, *, num_classes: int = 10, input_shape: tuple[int, int, int] = (3, 224, 224)
) -> nn.Module:
    """A classifier of torchvision with new weights.

    Args:
        model: its name in torchvision, as ``"resnet18"``.
        num_classes: number of logits.
        input_shape: channels, height and width; torchvision's models take three channels.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        ValueError: torchvision has no such model, or the images are not RGB.
    """
    models = collection("torchvision").models
    if model not in models.list_models():
        raise ValueError(f"model: torchvision has none named {model!r}; torchvision.models.list_models() lists them")
    if input_shape[0] != 3:
        raise ValueError(
            f"torchvision's models take three channels, the data have {input_shape[0]}; load the images as RGB, or "
            "take the model from timm, which adapts the first layer"
        )
    made: nn.Module = models.get_model(model, weights=None, num_classes=num_classes)
    return made
