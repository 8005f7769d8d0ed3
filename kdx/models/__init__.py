"""Small models for images, series and token ids, all built as ``Model(..., num_classes=..., input_shape=...)``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.models.bag import EmbeddingBag as EmbeddingBag
    from kdx.models.cnn import ConvNet as ConvNet
    from kdx.models.conv1d import ConvNet1d as ConvNet1d
    from kdx.models.depthwise import DepthwiseNet as DepthwiseNet
    from kdx.models.feature_sum import FeatureSum as FeatureSum
    from kdx.models.mlp import MLP as MLP
    from kdx.models.residual_sum import ResidualSum as ResidualSum
    from kdx.models.resnet import ResNet as ResNet
    from kdx.models.token_conv import TokenConv as TokenConv
    from kdx.models.token_decoder import TokenDecoder as TokenDecoder
    from kdx.models.token_transformer import TokenTransformer as TokenTransformer
    from kdx.models.unet import UNet as UNet
    from kdx.models.vit import ViT as ViT
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.models.bag": ["EmbeddingBag"],
            "kdx.models.cnn": ["ConvNet"],
            "kdx.models.conv1d": ["ConvNet1d"],
            "kdx.models.depthwise": ["DepthwiseNet"],
            "kdx.models.feature_sum": ["FeatureSum"],
            "kdx.models.mlp": ["MLP"],
            "kdx.models.residual_sum": ["ResidualSum"],
            "kdx.models.resnet": ["ResNet"],
            "kdx.models.token_conv": ["TokenConv"],
            "kdx.models.token_decoder": ["TokenDecoder"],
            "kdx.models.token_transformer": ["TokenTransformer"],
            "kdx.models.unet": ["UNet"],
            "kdx.models.vit": ["ViT"],
        },
    )
