"""Parts of detectors that stand between maps and boxes: anchors, pooled regions, numbers in fp32."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import log2
from typing import Any

import torch
from lightning_utilities import apply_to_collection
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

RATIOS = (0.5, 1.0, 2.0)  # height over width of the anchors
CANONICAL = 224, 4  # side in pixels of a region that is read from the level with the stride 2 ** 4


class Anchors(AnchorGenerator):
    """Anchors of one size and three shapes at each place of a map, for maps of known strides.

    torchvision computes strides from the size of a padded batch and rounds them down; those of a ViT with patches of 14
    pixels are no whole numbers.

    Args:
        sizes: Side in pixels of the square anchor of each map.
        strides: Stride in pixels of each map.
    """

    def __init__(self, sizes: list[int], strides: list[float]) -> None:
        super().__init__(tuple((size,) for size in sizes), (RATIOS,) * len(sizes))
        self.strides = strides

    def forward(self, images: ImageList, maps: list[Tensor]) -> list[Tensor]:
        """Anchors (n, 4), the same for each image, of maps (B, C, h, w)."""
        first = maps[0]
        self.set_cell_anchors(first.dtype, first.device)
        strides = [[torch.tensor(stride, dtype=first.dtype, device=first.device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([list(x.shape[2:]) for x in maps], strides))
        return [anchors] * len(first)


def region_pool(side: int, strides: list[float]) -> MultiScaleRoIAlign:
    """Layer that reads regions (n, C, side, side) from maps ``0``, ``1``, ... of known strides, by their size.

    torchvision guesses strides from the first batch, and an image much smaller than its padded batch gives wrong ones.
    """
    pool = MultiScaleRoIAlign([str(level) for level in range(len(strides))], side, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = LevelMapper(round(log2(strides[0])), round(log2(strides[-1])), *CANONICAL)
    return pool


def in_fp32(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Forward hook: outputs in fp32, because coordinates that autocast rounds to 8 bits are off by pixels."""
    return apply_to_collection(output, Tensor, Tensor.float)


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Set the mode of a module: parts of torchvision give losses in training mode alone, and boxes in eval mode."""
    before = module.training
    module.train(training)
    try:
        yield
    finally:
        module.train(before)
