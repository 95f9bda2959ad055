"""Layers that several heads use."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNormReLU(nn.Sequential):
    """Convolution without bias, BatchNorm and ReLU; the size of the map stays.

    Args:
        channels: Channels of the input.
        width: Channels of the output.
        kernel: Side of the kernel in pixels, an odd number.
    """

    def __init__(self, channels: int, width: int, kernel: int = 3) -> None:
        conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(width), nn.ReLU())


def resized(x: Tensor, size: torch.Size) -> Tensor:
    """Map (B, C, H, W) in another size (H, W), by bilinear interpolation; the map itself if it has this size."""
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear")
