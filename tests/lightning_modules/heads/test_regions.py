"""Anchors, pooled regions and numbers in fp32."""

import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from lightning_modules.heads.regions import RATIOS, Anchors, in_fp32, in_mode, region_pool


def test_anchors_of_whole_strides() -> None:
    """They are torchvision's."""
    maps = [torch.zeros(2, 3, 16, 24), torch.zeros(2, 3, 8, 12)]
    images = ImageList(torch.zeros(2, 3, 64, 96), [(64, 96), (60, 90)])
    expected = AnchorGenerator(((8,), (16,)), (RATIOS,) * 2)(images, maps)
    found = Anchors([8, 16], [4, 8])(images, maps)
    assert len(found) == 2
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_anchors_of_patches_of_14_pixels() -> None:
    """The first map of ViT/14 has a stride of 3.5 pixels, so the last of 8 anchors lies 24.5 pixels from the first."""
    maps = [torch.zeros(1, 3, 8, 8)]
    anchors = Anchors([8], [3.5])(ImageList(maps[0], [(28, 28)]), maps)[0].view(8, 8, 3, 4)
    assert (anchors[0, 7] - anchors[0, 0]).tolist() == [[24.5, 0, 24.5, 0]] * 3


def test_regions_of_known_strides() -> None:
    """As torchvision's for an image that fills its batch, and the same for a smaller one."""
    maps = {str(level): torch.randn(1, 4, 64 // 2**level, 64 // 2**level) for level in range(4)}
    boxes = [torch.tensor([[0.0, 0, 20, 20], [10, 10, 120, 120], [0, 0, 250, 250]])]
    expected = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)(maps, boxes, [(256, 256)])
    for size in ((256, 256), (60, 60)):
        assert torch.equal(region_pool(7, [4, 8, 16, 32])(maps, boxes, [size]), expected)


def test_outputs_in_fp32() -> None:
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(in_fp32)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 4)).dtype is torch.float32


def test_mode_is_restored() -> None:
    layer = nn.Linear(2, 2).eval()
    with in_mode(layer, True):
        assert layer.training
    assert not layer.training
