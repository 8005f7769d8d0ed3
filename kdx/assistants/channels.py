"""The channels of a layer of a finished model, which a student's structure is made to."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kdx.capture import Taps
from kdx.features.adapters import to_map
from kdx.features.feature import read_features
from kdx.modes import evaluating

__all__ = ["teacher_channels"]


def teacher_channels(teacher: nn.Module, layer: str, example: Any, who: str) -> int:
    """The channels of a layer of the trained teacher, read as a map.

    Args:
        teacher: the trained model.
        layer: tap of the layer.
        example: inputs of one row, as a batch.
        who: the assistant, with which messages begin.
    """
    with evaluating(teacher), torch.no_grad():
        captured = Taps(teacher, (layer,))(example)
    (feature,) = read_features(captured, (layer,), who=f"{who}: the teacher's feature")
    return to_map(feature).shape[1]
