"""Small models for small images, all built as ``Model(..., num_classes=10, input_shape=(1, 28, 28))``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.models.cnn import ConvNet as ConvNet
    from kdx.models.depthwise import DepthwiseNet as DepthwiseNet
    from kdx.models.mlp import MLP as MLP
    from kdx.models.residual_sum import ResidualSum as ResidualSum
    from kdx.models.resnet import ResNet as ResNet
    from kdx.models.unet import UNet as UNet
    from kdx.models.vit import ViT as ViT
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.models.cnn": ["ConvNet"],
            "kdx.models.depthwise": ["DepthwiseNet"],
            "kdx.models.mlp": ["MLP"],
            "kdx.models.residual_sum": ["ResidualSum"],
            "kdx.models.resnet": ["ResNet"],
            "kdx.models.unet": ["UNet"],
            "kdx.models.vit": ["ViT"],
        },
    )
