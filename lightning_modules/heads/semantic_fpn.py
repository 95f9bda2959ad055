"""Semantic FPN: Panoptic Feature Pyramid Networks (arXiv:1901.02446)."""

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from lightning_modules.heads.layers import ConvNormReLU, resized


class SemanticFPN(nn.Module):
    """Feature pyramid whose levels are enlarged step by step to the size of the first one and added.

    Args:
        channels: Channels of each map; each map has half the sides of the one before.
        num_classes: Number of classes K.
        width: Channels of the pyramid; the layers behind it have half as many.
        dropout: Probability of dropping a channel before the classifier.
    """

    def __init__(self, channels: list[int], num_classes: int, width: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(channels, width)
        self.branches = nn.ModuleList(self.branch(level, width) for level in range(len(channels)))
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width // 2, num_classes, 1)

    @staticmethod
    def branch(level: int, width: int) -> nn.Sequential:
        """Layers from a level of the pyramid to the size of the first one: a convolution for each doubling."""
        layers = nn.Sequential()
        for step in range(max(level, 1)):
            layers.append(ConvNormReLU(width // 2 if step else width, width // 2))
            if level:
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
        return layers

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits (B, K, H, W) of maps (B, C, h, w), the first of which is the largest, H x W."""
        levels = list(self.pyramid({str(level): x for level, x in enumerate(maps)}).values())
        size = levels[0].shape[2:]
        # the sides of a map can be odd, so that doubling the next one gives a pixel more or less
        enlarged = [resized(branch(x), size) for branch, x in zip(self.branches, levels, strict=True)]
        return self.classifier(self.dropout(torch.stack(enlarged).sum(0)))
