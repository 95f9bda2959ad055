"""Necks of detectors: five maps of equal channels, each with half the sides of the one before."""

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from backbones.pyramid import ViTPyramid


class PyramidNeck(nn.Module):
    """Feature pyramid (FPN, arXiv:1612.03144) over four maps, and every second pixel of its last level as the fifth.

    Args:
        widths: Channels of the four maps.
        channels: Channels of the five maps.
        tokens: Whether the four maps are blocks of a plain ViT, which are first brought to the sizes of a pyramid.
    """

    def __init__(self, widths: list[int], channels: int, tokens: bool) -> None:
        super().__init__()
        self.enlarge = ViTPyramid(widths[0]) if tokens else None
        self.pyramid = FeaturePyramidNetwork(widths, channels, LastLevelMaxPool())

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Five maps (B, channels, ., .) of four maps (B, C, h, w)."""
        maps = maps if self.enlarge is None else self.enlarge(maps)
        return list(self.pyramid({str(level): x for level, x in enumerate(maps)}).values())


class SimpleFeaturePyramid(nn.Module):
    """Pyramid of ViTDet (arXiv:2203.16527): all levels from the last map of a plain ViT.

    Args:
        width: Channels D of the map.
        channels: Channels of the five maps.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        once = nn.ConvTranspose2d(width, half, 2, stride=2)
        twice = nn.Sequential(
            nn.ConvTranspose2d(width, half, 2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        )
        sizes = [(twice, quarter), (once, half), (nn.Identity(), width), (nn.MaxPool2d(2), width)]
        self.levels = nn.ModuleList(
            nn.Sequential(
                size,
                nn.Conv2d(inputs, channels, 1, bias=False),
                LayerNorm2d(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                LayerNorm2d(channels),
            )
            for size, inputs in sizes
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Five maps (B, channels, ., .) with 4, 2, 1, 1/2 and 1/4 times the sides of the last map (B, D, h, w)."""
        levels = [level(maps[-1]) for level in self.levels]
        return [*levels, nn.functional.max_pool2d(levels[-1], 1, 2)]
