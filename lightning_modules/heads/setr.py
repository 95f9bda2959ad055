"""SETR: Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective (arXiv:2012.15840)."""

from torch import Tensor, nn

from lightning_modules.heads.layers import ConvNormReLU


class SETRPUP(nn.Sequential):
    """Progressive upsampling: convolutions, each followed by enlarging, and a classifier, on one map (B, C, h, w).

    The head has four convolutions with a factor of 2 each, an auxiliary head one convolution with a factor of 4.

    Args:
        channels: Channels of the map.
        num_classes: Number of classes K.
        width: Channels of the convolutions.
        steps: Number of convolutions.
        factor: Factor by which the map grows after each convolution.
    """

    def __init__(self, channels: int, num_classes: int, width: int = 256, steps: int = 4, factor: int = 2) -> None:
        super().__init__()
        for step in range(steps):
            self.append(ConvNormReLU(width if step else channels, width))
            self.append(nn.Upsample(scale_factor=factor, mode="bilinear"))
        self.append(nn.Conv2d(width, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, H, W) of a map (B, C, h, w), with ``factor ** steps`` times the sides of the map."""
        return super().forward(x)
