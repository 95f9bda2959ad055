"""UperNet: Unified Perceptual Parsing for Scene Understanding (arXiv:1807.10221).

The layers and their order are those of mmsegmentation and of transformers, with dropout before the classifier.
"""

import torch
from torch import Tensor, nn

from lightning_modules.heads.layers import ConvNormReLU, resized

SCALES = (1, 2, 3, 6)  # sides of the pooled maps


class PyramidPooling(nn.Module):
    """Means over a grid of 1, 4, 9 and 36 parts of a map, joined with the map itself.

    Args:
        channels: Channels of the map.
        width: Channels of the output and of each pooled map.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNormReLU(channels, width, kernel=1)) for scale in SCALES
        )
        self.bottleneck = ConvNormReLU(channels + len(SCALES) * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, h, w) of a map (B, C, h, w).

        Raises:
            ValueError: In training for one image, which BatchNorm cannot norm after pooling to one place.
        """
        if self.training and len(x) < 2:
            raise ValueError("batch_size=1: UperNet norms means over whole images, expected at least 2 images a device")
        pooled = [resized(pool(x), x.shape[2:]) for pool in self.pools]
        return self.bottleneck(torch.cat([x, *pooled], dim=1))


class UperNet(nn.Module):
    """Pyramid pooling of the last map, a feature pyramid over all maps, and one classifier of all its levels.

    Args:
        channels: Channels of each map, from the largest map to the smallest.
        num_classes: Number of classes K.
        width: Channels of all layers.
        dropout: Probability of dropping a channel before the classifier.
    """

    def __init__(self, channels: list[int], num_classes: int, width: int = 512, dropout: float = 0.1) -> None:
        super().__init__()
        *others, last = channels
        self.pooling = PyramidPooling(last, width)
        self.laterals = nn.ModuleList(ConvNormReLU(c, width, kernel=1) for c in others)
        self.convs = nn.ModuleList(ConvNormReLU(width, width) for _ in others)
        self.bottleneck = ConvNormReLU(len(channels) * width, width)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits (B, K, H, W) of maps (B, C, h, w), the first of which is the largest, H x W."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=False)] + [self.pooling(maps[-1])]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + resized(levels[i], levels[i - 1].shape[2:])
        levels = [*(conv(x) for conv, x in zip(self.convs, levels, strict=False)), levels[-1]]
        joined = torch.cat([resized(x, levels[0].shape[2:]) for x in levels], dim=1)
        return self.classifier(self.dropout(self.bottleneck(joined)))


class FCN(nn.Sequential):
    """Auxiliary head of UperNet: one convolution and a classifier, on one map (B, C, h, w).

    Args:
        channels: Channels of the map.
        num_classes: Number of classes K.
        width: Channels of the convolution.
        dropout: Probability of dropping a channel before the classifier.
    """

    def __init__(self, channels: int, num_classes: int, width: int = 256, dropout: float = 0.1) -> None:
        layers = ConvNormReLU(channels, width), nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1)
        super().__init__(*layers)
