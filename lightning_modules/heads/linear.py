"""Linear head: one layer from the features of a place to its logits."""

import torch
from torch import Tensor, nn

from lightning_modules.heads.layers import resized


class Linear(nn.Module):
    """BatchNorm and a 1 x 1 convolution. Several maps are resized to the largest one and joined.

    Args:
        channels: Channels of each map.
        num_classes: Number of classes K.
    """

    def __init__(self, channels: list[int], num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(sum(channels))
        self.classifier = nn.Conv2d(sum(channels), num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits (B, K, H, W) of maps (B, C, h, w), the largest of which, H x W, is the first."""
        size = maps[0].shape[2:]
        return self.classifier(self.norm(torch.cat([resized(x, size) for x in maps], dim=1)))
