"""Small models for small images, all built as ``Model(..., num_classes=10, input_shape=(1, 28, 28))``."""

from kdx.models.cnn import ConvNet
from kdx.models.depthwise import DepthwiseNet
from kdx.models.mlp import MLP
from kdx.models.resnet import ResNet
from kdx.models.vit import ViT

__all__ = ["MLP", "ConvNet", "DepthwiseNet", "ResNet", "ViT"]
