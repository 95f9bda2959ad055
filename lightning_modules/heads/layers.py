"""Layers that several heads use."""

from torch import nn


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
